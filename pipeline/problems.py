"""pydantic's findings as problems of the user's file: what is wrong, `kdpipe.toml:LINE`, and what to do.

Everything is derived from the models: nearest keys, lists of keys, ranges, choices, descriptions. What TOML can tell
apart and pydantic would convert (a number in quotes, a switch for a number) is refused here as well.
"""

import datetime
import difflib
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.pipeline.toml_source import KeyPath, TomlSource

Model = TypeVar("Model", bound=BaseModel)

_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
_NEEDED = {  # pydantic's error types to words
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text in quotes",
    "path_type": "a path in quotes",
    "list_type": "a list [ … ]",
    "tuple_type": "a list [ … ]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "none_required": "nothing",
}


@dataclass(frozen=True)
class Section:
    """A table of the file under check. `keys`: its keys by name; `hidden`: fields of the model that the file does not set."""

    path: KeyPath
    source: TomlSource
    hidden: frozenset[str] = frozenset()
    more: Mapping[str, FieldInfo] | None = None
    """keys that the model takes beside its fields (those of a plug-in), flat"""

    @property
    def title(self) -> str:
        """`[distill.attack]`."""
        return title(self.path)


def title(path: KeyPath) -> str:
    """How messages call a table: `[targets.arm]`, a table of a list `[[distill.teachers]]`; the file itself is `the top level`."""
    name = ".".join(part for part in path if isinstance(part, str))
    return "the top level" if not path else f"[[{name}]]" if isinstance(path[-1], int) else f"[{name}]"


def checked(model: type[Model], values: Any, section: Section) -> tuple[Model | None, list[Problem]]:
    """The section as its model, or None and all that is wrong with it."""
    if not isinstance(values, Mapping):
        return None, [
            Problem(
                f"{_key_name(section.path)} = {_toml(values)}: a table is needed",
                section.source.at(section.path),
                f"write {section.title} and its keys below it",
            )
        ]
    problems = _not_toml_typed(values, section.path, section.source)
    problems += [unknown_key(key, section.path, section.source, keys_of(model, section)) for key in values if key in section.hidden]
    if problems:
        return None, problems
    try:
        built = model.model_validate(dict(values))
    except ValidationError as error:
        return None, _translated(error, model, values, section)
    except ConfigError as error:
        return None, [placed(problem, section) for problem in error.problems]
    mistyped = _converted(built, values, section.path, section.source)
    return (None, mistyped) if mistyped else (built, [])


def placed(problem: Problem, section: Section) -> Problem:
    """The problem with its place as file and line, where its `at` is a key or table of the file (`distill.objective`, `[distill]`)."""
    written = (problem.at or "").strip("[]")
    parts: KeyPath = tuple(part for part in written.split(".") if part)
    if parts[: len(section.path)] == section.path:
        return Problem(problem.message, section.source.at(parts), problem.do)
    if not problem.at or (*section.path, *parts) in section.source.lines:
        return Problem(problem.message, section.source.at((*section.path, *parts)), problem.do)
    return problem


def unknown_key(key: str, parent: KeyPath, source: TomlSource, known: Iterable[str]) -> Problem:
    """The answer to a misspelt key: the nearest one, and all."""
    keys = sorted(known)
    near = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    every = f"{'sections' if not parent else f'keys of {title(parent)}'}: {', '.join(keys)}" if keys else f"{title(parent)} takes no keys"
    return Problem(
        f"unknown {'section' if not parent else 'key'} {key!r}" + (f" in {title(parent)}" if parent else ""), source.at((*parent, key)), hint + every
    )


def keys_of(model: type[BaseModel], section: Section | None = None) -> list[str]:
    """The keys that a user may write for this model."""
    hidden = section.hidden if section else frozenset()
    more = section.more or {} if section else {}
    return sorted({field.alias or name for name, field in model.model_fields.items() if name not in hidden and not field.exclude} | set(more))


def objective_fields(model: type[BaseModel], values: Any) -> Mapping[str, FieldInfo] | None:
    """The keys that the table's objective brings, where the table is one with an objective and names one that exists."""
    from kdpipe.stages.objectives.configured import ObjectiveSection, objective_class

    if not issubclass(model, ObjectiveSection) or not isinstance(values, Mapping):
        return None
    try:
        return objective_class(str(values.get("objective", model.default_objective)), at="objective").model_fields
    except ConfigError:
        return None  # told when the section itself is checked


def interval(field: FieldInfo) -> str | None:
    """The field's range: `(0, 1]`, `[1, ∞)`; None where it has none."""
    low, high = "(-∞", "∞)"
    for bound in field.metadata:
        if isinstance(bound, Ge):
            low = f"[{bound.ge:g}"
        elif isinstance(bound, Gt):
            low = f"({bound.gt:g}"
        elif isinstance(bound, Le):
            high = f"{bound.le:g}]"
        elif isinstance(bound, Lt):
            high = f"{bound.lt:g})"
    return None if (low, high) == ("(-∞", "∞)") else f"{low}, {high}"


def _translated(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], section: Section) -> list[Problem]:
    """One problem a place: the alternatives of a union are told together."""
    places: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors():
        places.setdefault(_place(details["loc"], details["type"], values), []).append(details)
    deepest = [place for place in places if not any(other != place and other[: len(place)] == place for other in places)]
    return [_problem(place, places[place], model, section) for place in deepest]


def _place(loc: Sequence[str | int], kind: str, values: Any) -> KeyPath:
    """The key path within the section: pydantic's location without the tags of unions and validators."""
    path: KeyPath = ()
    for depth, part in enumerate(loc):
        is_key = isinstance(values, Mapping) and (part in values or (kind == "missing" and depth == len(loc) - 1))
        is_index = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if is_key or is_index:
            path += (part,)
            values = values[part] if is_index or part in values else None
    return path


def _problem(place: KeyPath, details: list[ErrorDetails], model: type[BaseModel], section: Section) -> Problem:
    first, source, path = details[0], section.source, (*section.path, *place)
    owner, field = _owner(model, place, section)
    if first["type"] == "extra_forbidden":
        inside = section if len(place) == 1 else Section(path[:-1], source, more=objective_fields(owner, _written_at(path[:-1], source))) if owner else None
        return unknown_key(str(place[-1]), path[:-1], source, keys_of(owner, inside) if owner else [])
    if first["type"] == "missing":
        return Problem(f"{title(path[:-1])} needs {str(place[-1])!r}", source.at(path[:-1]), _advice(field) or f"add {place[-1]} = …")
    written = f"{_key_name(path)} = {_toml(first['input'])}"
    told = first.get("ctx", {})
    if "message" in told and "advice" in told:  # a validator that says both itself
        return Problem(f"{written}: {told['message']}", source.at(path), str(told["advice"]))
    if any(each["type"] in _RANGE_ERRORS for each in details):
        return _out_of_range(written, first["input"], place, field, source.at(path), first)
    if first["type"] == "union_tag_invalid":
        return _unknown_tag(_key_name(path), first, source.at(path))
    choices = [choice for each in details if each["type"] == "literal_error" for choice in _choices(each)]
    needed = list(dict.fromkeys(_NEEDED[each["type"]] for each in details if each["type"] in _NEEDED))
    if choices and isinstance(first["input"], str | int | float):
        near = difflib.get_close_matches(str(first["input"]), choices, n=1)
        one_of = ", ".join(_toml(choice) for choice in choices) + "".join(f", or {need}" for need in needed)
        return Problem(f"{written} is not one of {one_of}", source.at(path), f'did you mean "{near[0]}"?' if near else _advice(field) or "choose one of them")
    if needed:
        return Problem(f"{written}: {' or '.join(needed)} is needed", source.at(path), _advice(field) or "correct the value")
    reason = f"at least {told['min_length']} is needed" if first["type"] == "too_short" else first["msg"].removeprefix("Value error, ")
    blamed = reason.partition(" = ")[0]  # a check of the whole table that blames one key: `epsilon = 8 is not in …`
    if isinstance(first["input"], Mapping) and blamed in first["input"]:
        return Problem(reason, source.at((*path, blamed)), _advice(_owner(model, (*place, blamed), section)[1]) or "correct it")
    message = f"{written}: {reason}" if place and not isinstance(first["input"], Mapping | BaseModel) else f"{title(path)}: {reason}"
    return Problem(message, source.at(path), _advice(field) or "correct it")


def _unknown_tag(key: str, details: ErrorDetails, at: str) -> Problem:
    """A table whose `name` is none of those that the list takes."""
    told = details.get("ctx", {})
    choices = [part.strip("' ") for part in str(told.get("expected_tags", "")).split(",")]
    near = difflib.get_close_matches(str(told.get("tag", "")), choices, n=1)
    one_of = ", ".join(_toml(choice) for choice in choices)
    return Problem(
        f"{key} is called {_toml(told.get('tag'))}, which is not one of {one_of}", at, f'did you mean "{near[0]}"?' if near else "choose one of them"
    )


def _out_of_range(written: str, value: Any, place: KeyPath, field: FieldInfo | None, at: str, details: ErrorDetails) -> Problem:
    inside = interval(field) if field is not None else None
    reason = f"is not in {inside}" if inside else _bound(details)
    hint = ""
    if place[-1] == "epsilon" and isinstance(value, int | float) and 1 < value <= 255:
        hint = f"; {value:g}/255 is {value / 255:.4f}"  # written for pixels from 0 to 255
    return Problem(f"{written} {reason}{hint}", at, _advice(field) or (f"choose a value in {inside}" if inside else "choose another value"))


def _bound(details: ErrorDetails) -> str:
    """The one limit that pydantic tells of, where the field itself states none."""
    limits = details.get("ctx", {})
    words = {"gt": "is not above", "ge": "is below", "lt": "is not below", "le": "is above"}
    return next((f"{words[kind]} {limit:g}" for kind, limit in limits.items() if kind in words), "is not a finite number")


def _advice(field: FieldInfo | None) -> str | None:
    """What the key means, with its range and default: the model's own words."""
    if field is None or not field.description:
        return None
    inside = interval(field)
    return f"it is: {field.description}" + (f", in {inside}" if inside and inside not in field.description else "")


def _choices(details: ErrorDetails) -> list[str]:
    """The choices of a literal, from pydantic's own text (`'linf' or 'l2'`), in order."""
    expected = str(details.get("ctx", {}).get("expected", ""))
    return [part.strip().strip("'") for chunk in expected.split(" or ") for part in chunk.split(", ")]


def _owner(model: type[BaseModel], place: KeyPath, section: Section) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model whose key `place` ends in, and the key's field where the model has it."""
    current: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for depth, part in enumerate(place):
        if isinstance(part, int):
            field = None
            continue
        field = _field(current, part) if current is not None else None
        more = section.more if depth == 0 else objective_fields(current, _written_at((*section.path, *place[:depth]), section.source)) if current else None
        if field is None and more:
            field = more.get(part)
        if depth < len(place) - 1:
            models = _models_in(field.annotation) if field is not None else ([current] if current is not None else [])
            current = models[0] if models else None
    return current, field


def _written_at(path: KeyPath, source: TomlSource) -> Any:
    """What the file says there; None where it says nothing."""
    found: Any = source.values
    for part in path:
        inside = part in found if isinstance(found, Mapping) else isinstance(found, list) and isinstance(part, int) and part < len(found)
        if not inside:
            return None
        found = found[part]
    return found


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    return next((field for name, field in model.model_fields.items() if (field.alias or name) == key), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _not_toml_typed(values: Any, path: KeyPath, source: TomlSource) -> list[Problem]:
    """Values that no key takes: inf and nan, dates and times."""
    if isinstance(values, Mapping):
        return [problem for key, value in values.items() for problem in _not_toml_typed(value, (*path, key), source)]
    if isinstance(values, list):
        return [problem for index, value in enumerate(values) for problem in _not_toml_typed(value, (*path, index), source)]
    if isinstance(values, float) and not math.isfinite(values):
        return [Problem(f"{_key_name(path)} = {_toml(values)} is not a finite number", source.at(path), "write a finite number")]
    if isinstance(values, datetime.date | datetime.time):
        return [Problem(f"{_key_name(path)} = {values} is a date or time", source.at(path), "put it in quotes if a text is meant")]
    return []


def _converted(built: Any, values: Any, path: KeyPath, source: TomlSource) -> list[Problem]:
    """Numbers in quotes and switches for numbers, which pydantic converted."""
    if isinstance(values, Mapping):
        return [problem for key, value in values.items() for problem in _converted(_value_at(built, key), value, (*path, key), source)]
    if isinstance(values, list) and isinstance(built, list | tuple) and len(values) == len(built):
        return [problem for index, inner in enumerate(built) for problem in _converted(inner, values[index], (*path, index), source)]
    number = isinstance(built, int | float) and not isinstance(built, bool)
    if number and isinstance(values, str):
        return [Problem(f"{_key_name(path)} = {_toml(values)}: a number is needed", source.at(path), f"remove the quotes: {_key_name(path)} = {values}")]
    if number and isinstance(values, bool):
        return [Problem(f"{_key_name(path)} = {_toml(values)}: a number is needed", source.at(path), "write a number")]
    if isinstance(built, bool) and not isinstance(values, bool):
        return [Problem(f"{_key_name(path)} = {_toml(values)}: true or false is needed", source.at(path), "write true or false without quotes")]
    return []


def _value_at(built: Any, key: str) -> Any:
    """What the key became: a field by name or alias, or a key of the plug-in that a field holds; None where it cannot be told."""
    if isinstance(built, Mapping):
        return built.get(key)
    if not isinstance(built, BaseModel):
        return None
    names = [name for name, field in type(built).model_fields.items() if (field.alias or name) == key]
    if names:
        return getattr(built, names[0])
    plugins = [value for value in dict(built).values() if isinstance(value, BaseModel)]
    return next((_value_at(plugin, key) for plugin in plugins if key in type(plugin).model_fields), None)


def _key_name(path: KeyPath) -> str:
    """The last key of the path, with the index of a list's element: `attacks[1]`."""
    names = [part for part in path if isinstance(part, str)]
    index = f"[{path[-1]}]" if path and isinstance(path[-1], int) else ""
    return (names[-1] if names else "the file") + index


def _toml(value: Any) -> str:
    """The value as the file writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{ … }"
    return str(value)
