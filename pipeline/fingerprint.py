"""What a step's fingerprint is taken of: everything that can change its output, as one JSON value.

The value itself, the identity, is kept in `artifact.json`, so that a plan can say which field of it differs.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdpipe.foundation.files import canonical_json, sha256_of

_REFERENCE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_ABSENT = object()  # a key that one of two identities lacks
_CODE_SUFFIXES = {".py", ".so", ".pyd"}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """The full sha256 of the identity's canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def with_contents(config: Mapping[str, Any], contents: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with each setting that names files replaced by their digests: where they lie does not count.

    `contents`: `weights` (a file) or `weights/network.json` (a file of a folder) to its sha256.
    """
    copied = dict(config)
    for setting in {key.partition("/")[0] for key in contents}:
        files = {key.partition("/")[2]: f"sha256:{digest}" for key, digest in contents.items() if key.partition("/")[0] == setting}
        copied[setting] = files.get("", files)
    return copied


def present(value: Any) -> Any:
    """The JSON value without keys that are None: TOML has no null, so those are keys that nobody wrote.

    A key that a later version adds, absent by default, then changes no fingerprint: an upgrade rebuilds nothing for its sake.
    """
    if isinstance(value, Mapping):
        return {key: present(inner) for key, inner in value.items() if inner is not None}
    return [present(inner) for inner in value] if isinstance(value, list | tuple) else value


def tool_versions(tools: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each distribution, None where it is not installed."""
    return {tool: _version(tool) for tool in sorted(set(tools))}


def code_digests(value: Any, project: Path) -> dict[str, str]:
    """For every `package.module:name` in the JSON value: its top-level package or module to the digest of its source.

    Beside it, whatever it imports by name from the project's folder, and so on. What code reads or imports in other ways is not seen.
    kdpipe's own modules are left out: their stages' versions stand for them.
    """
    files = code_files(value, project)
    return {name: _digest(paths, root) for name, (root, paths) in sorted(files.items())}


def code_files(value: Any, project: Path) -> dict[str, tuple[Path, list[Path]]]:
    """The files behind `code_digests`: top-level name to its root and its files, sorted."""
    waiting = {reference.partition(":")[0].partition(".")[0] for reference in references(value)} - {"kdpipe"}
    found: dict[str, tuple[Path, list[Path]]] = {}
    while waiting:
        name = waiting.pop()
        inside = _in_project(name, project)
        located = inside or _installed(name)
        if located is None:
            continue  # whoever imports it says that it is missing
        found[name] = located
        if inside is not None:
            imported = {top for path in located[1] if path.suffix == ".py" for top in _imports(path)}
            waiting |= {top for top in imported - set(found) if _in_project(top, project) is not None}
    return found


def references(value: Any) -> Iterator[str]:
    """All texts of the form `package.module:name` in a JSON value."""
    if isinstance(value, str):
        if _REFERENCE.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], section: str) -> list[str]:
    """How two identities of one step differ, in the user's words: `distill.epochs 12 → 14`, `input teacher changed`, `data changed`."""
    return [_told(path, before, after, section) for path, before, after in _changes(old, new, ())]


def _changes(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            yield from _changes(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
    elif _ABSENT in (old, new) or canonical_json(old) != canonical_json(new):  # as the fingerprint sees them: true is not 1
        yield path, old, new


def _told(path: tuple[str, ...], before: Any, after: Any, section: str) -> str:
    head, rest = path[0], ".".join(path[1:])
    words = {"data": "data changed", "inputs": f"input {rest} changed", "code": f"code of {rest} changed", "version": f"kdpipe's {section} changed"}
    if head in words:
        return words[head]
    name = {"config": f"{section}.{rest}", "tools": rest, "seed": "project.seed", "threads": "project.threads"}.get(head, ".".join(path))
    if any(isinstance(value, str) and value.startswith("sha256:") for value in (before, after)):
        return f"{name}: the file changed"
    return f"{name} {_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    if value is _ABSENT or value is None:
        return "–" if value is _ABSENT else "none"
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= 40 else f"{text[:39]}…"


def _version(tool: str) -> str | None:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return None


def _in_project(name: str, project: Path) -> tuple[Path, list[Path]] | None:
    package, module = project / name, project / f"{name}.py"
    if package.is_dir() and any(package.rglob("*.py")):
        return package, _sources(package)
    return (project, [module]) if module.is_file() else None


def _installed(name: str) -> tuple[Path, list[Path]] | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        return root, _sources(root)
    return (Path(spec.origin).parent, [Path(spec.origin)]) if spec.origin and Path(spec.origin).is_file() else None


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in _CODE_SUFFIXES and path.is_file() and "__pycache__" not in path.parts)


def _imports(path: Path) -> set[str]:
    """The top-level names that a source file imports absolutely; none when it cannot be parsed (importing it tells why)."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module]
    return {module.partition(".")[0] for module in modules}


def _digest(paths: list[Path], root: Path) -> str:
    return hashlib.sha256(canonical_json({path.relative_to(root).as_posix(): sha256_of(path) for path in paths})).hexdigest()
