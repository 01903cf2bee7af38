"""Plug-ins found by name: the file's name is the plug-in's name, or `package.module:name` for a user's own.

Listing the names imports nothing.
"""

import difflib
import importlib
import re
from importlib.resources import files
from typing import Any

from kdpipe.foundation.errors import ConfigError

_PLUGIN_LINE = re.compile(r"^plugin\b[^=\n]*=", re.MULTILINE)


def names(package: str) -> list[str]:
    """The names of the plug-ins in `package` (`kdpipe.stages.objectives`), sorted, hyphens for underscores.

    A plug-in is a file that assigns `plugin` at its top level; what they share may so lie beside them.
    """
    found = [entry for entry in files(package).iterdir() if entry.name.endswith(".py") and not entry.name.startswith("_")]
    return sorted(entry.name.removesuffix(".py").replace("_", "-") for entry in found if _PLUGIN_LINE.search(entry.read_text(encoding="utf-8")))


def find(package: str, name: str, *, at: str) -> Any:
    """The object `plugin` of the module `name` in `package`, or what `package.module:name` names.

    `at` says where the name was written. Raises ConfigError with the nearest name when there is none.
    """
    if ":" in name:
        return imported(name, at=at)
    known = names(package)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown name {name!r}", at=at, do=f"{hint}known: {', '.join(known)}; your own: package.module:name")
    return importlib.import_module(f"{package}.{name.replace('-', '_')}").plugin


def imported(reference: str, *, at: str) -> Any:
    """The object that `package.module:name` names; ConfigError when it cannot be imported, with the cause."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{reference!r} is not of the form 'package.module:name'", at=at, do="write the module, a colon and the name in it")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"cannot import {module_name!r}: {type(error).__name__}: {error}",
            at=at,
            do="check the spelling, and that it is importable from the project's folder",
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        raise ConfigError(f"module {module_name!r} has no {attribute!r}", at=at, do=f"did you mean {near[0]!r}?" if near else "check the spelling")
    return getattr(module, attribute)
