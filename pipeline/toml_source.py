"""A TOML file that remembers its lines: values by tomllib, and for every key path the line on which it stands.

tomllib gives no positions. Once it has accepted a text, a small scanner that trusts the syntax walks it again and notes
where each key begins: headers, dotted keys, arrays of tables, inline tables and the elements of arrays.
"""

import bisect
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdpipe.foundation.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]

MOST_BYTES = 1_000_000  # of a configuration: what is larger was given by mistake, and tomllib takes its time

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # up to two quotes may stand before the closing three
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SYNTAX_ERROR = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)$", re.DOTALL)


@dataclass(frozen=True)
class TomlSource:
    """A parsed file. `name`: as messages call it (`kdpipe.toml`). `lines`: key path to line, from 1; elements of arrays by index."""

    name: str
    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """key path to the `--set` text that wrote it"""

    def at(self, path: KeyPath) -> str:
        """Where `path` was written: `kdpipe.toml:14`, `--set distill.epochs=3`, or for a path that was not written its nearest parent's place."""
        for length in range(len(path), 0, -1):
            head = path[:length]
            if head in self.overrides:
                return f"--set {self.overrides[head]}"
            if head in self.lines:
                return f"{self.name}:{self.lines[head]}"
            below = [text for longer, text in self.overrides.items() if longer[:length] == head]
            if below:  # a table that only `--set` made
                return f"--set {below[0]}"
        return self.name

    def overridden(self, settings: list[str] | tuple[str, ...]) -> "TomlSource":
        """The source with `--set` texts (`distill.epochs=3`) applied in order; a value that is no TOML is taken as a string.

        Raises ConfigError with every text that is not of the form `key.path=value` or passes through something that is no table.
        """
        values = _copied(self.values)
        overrides, problems = dict(self.overrides), []
        for text in settings:
            try:
                path, value = _parsed_setting(text)
                _put_(values, path, value)
            except _RefusalError as refusal:
                problems.append(Problem(str(refusal), f"--set {text}", refusal.do))
            else:
                overrides[path] = text
        if problems:
            raise ConfigError.gather(problems)
        return TomlSource(self.name, values, self.lines, overrides)


def read_toml(path: Path) -> TomlSource:
    """The file at `path`; ConfigError with the line when it is not UTF-8 or not TOML."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ConfigError(f"the file has {size / 1e6:,.1f} MB, a configuration has at most {MOST_BYTES / 1e6:g}", at=path, do="check that it is the one")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror or error}", at=path, do="check the path and its permissions") from error
    try:
        text = content.decode().removeprefix("\ufeff")  # the mark with which some editors begin a UTF-8 file
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"byte 0x{content[error.start]:02x} is not UTF-8", at=f"{path.name}:{line}", do="save the file as UTF-8") from error
    return parse_toml(text, path.name)


def parse_toml(text: str, name: str) -> TomlSource:
    """`text` as a source that messages call `name`; ConfigError with the line when it is not TOML."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, line = _syntax_error(str(error), text)
        raise ConfigError(f"not valid TOML: {what}", at=f"{name}:{line}", do=_syntax_advice(text, line)) from error
    except (ValueError, RecursionError) as error:  # tomllib lets through what Python says of a number with thousands of digits, or of brackets within brackets
        raise ConfigError("not usable TOML: a number of thousands of digits, or thousands of nested brackets", at=name, do="write it plainer") from error
    return TomlSource(name, values, _Scanner(text.replace("\r\n", "\n")).lines)


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    match = _SYNTAX_ERROR.match(message)
    if match is None:
        return message, 1
    last = text.rstrip().count("\n") + 1
    return match["what"], min(int(match["line"]), last) if match["line"] else last


def _syntax_advice(text: str, line: int) -> str:
    written = text.splitlines()[line - 1].strip() if text.strip() else ""
    key, equals, value = written.partition("=")
    if equals and re.fullmatch(r"[A-Za-z][\w./:-]*", value.strip()):
        return f'put the text in quotes: {key.strip()} = "{value.strip()}"'
    return "mend the line; the syntax: https://toml.io"


class _Scanner:
    """One pass over a text that tomllib has accepted, its line ends single newlines."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.lines: dict[KeyPath, int] = {}
        self._starts = [0] + [match.end() for match in re.finditer("\n", text)]
        self._tables: dict[KeyPath, int] = {}  # array of tables: its path to the number of its tables so far
        self._document()

    def _document(self) -> None:
        table: KeyPath = ()
        while self._skip_blank():
            if self.text.startswith("[[", self.position):
                table = self._header(2)
            elif self.text[self.position] == "[":
                table = self._header(1)
            else:
                self._pair(table)

    def _header(self, brackets: int) -> KeyPath:
        line = self._line()
        self.position += brackets
        path: KeyPath = ()
        keys = self._keys()
        for depth, key in enumerate(keys, 1):
            path += (key,)
            if brackets == 2 and depth == len(keys):
                self.lines.setdefault(path, line)
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path += (self._tables[path] - 1,)
            self.lines.setdefault(path, line)
        if brackets == 1:
            self.lines[path] = line  # `[a.b]` before `[a]`: the table's own header counts
        self.position += brackets
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path += (key,)
            self.lines.setdefault(path, line)
        self.position += 1  # the equals sign
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip_blank()
            if self.text[self.position] in "\"'":
                keys.append(_text_of(self._string()))
            else:
                match = _BARE_KEY.match(self.text, self.position)
                assert match is not None, "tomllib accepted a key that is neither bare nor quoted"
                keys.append(match[0])
                self.position = match.end()
            self._skip_blank()
            if self.text[self.position] != ".":
                return keys
            self.position += 1

    def _value(self, path: KeyPath) -> None:
        self._skip_blank()
        opening = self.text[self.position]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            self._collection("]", path)
        elif opening == "{":
            self._collection("}", path)
        else:
            match = _SCALAR.match(self.text, self.position)
            assert match is not None, "the pattern matches the empty text"
            self.position = match.end()

    def _collection(self, closing: str, path: KeyPath) -> None:
        self.position += 1
        index = 0
        while self._skip_blank() and self.text[self.position] != closing:
            if closing == "]":
                self.lines[(*path, index)] = self._line()
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
            self._skip_blank()
            if self.text[self.position] == ",":
                self.position += 1
        self.position += 1

    def _string(self) -> str:
        match = _STRING.match(self.text, self.position)
        assert match is not None, "tomllib accepted a string that does not end"
        self.position = match.end()
        return match[0]

    def _skip_blank(self) -> bool:
        match = _BLANK.match(self.text, self.position)
        assert match is not None, "the pattern matches the empty text"
        self.position = match.end()
        return self.position < len(self.text)

    def _line(self) -> int:
        return bisect.bisect_right(self._starts, self.position)


class _RefusalError(ValueError):
    """Why a `--set` text cannot be applied."""

    def __init__(self, message: str, do: str) -> None:
        super().__init__(message)
        self.do = do


def _parsed_setting(text: str) -> tuple[KeyPath, Any]:
    key, equals, written = text.partition("=")
    try:
        path = _path_of(key)
    except (tomllib.TOMLDecodeError, _RefusalError):
        path = ()
    if not equals or not path:
        raise _RefusalError(f"{text!r} is not of the form key.path=value", "for example --set distill.epochs=3")
    try:
        return path, tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return path, written.strip()


def _path_of(key: str) -> KeyPath:
    """The parts of a dotted key as TOML writes it; quoted parts may hold dots."""
    if "\n" in key or "=" in key:
        raise _RefusalError("not a key", "")
    nested: Any = tomllib.loads(f"{key} = 0")
    path: KeyPath = ()
    while isinstance(nested, dict):
        ((part, nested),) = nested.items()
        path += (part,)
    return path


def _put_(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    table: Any = values
    for depth, key in enumerate(path[:-1], 1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            name = ".".join(map(str, path[:depth]))
            raise _RefusalError(f"{name!r} is a value, not a table", f"set it as a whole: --set {name}=…")
    table[path[-1]] = value


def _copied(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copied(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_copied(value) for value in values]
    return values


def _text_of(quoted: str) -> str:
    value: str = tomllib.loads(f"value = {quoted}")["value"]
    return value
