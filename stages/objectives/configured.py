"""From configuration keys to an objective, and the sections whose keys are a stage's and its objective's side by side.

`[distill]` holds `epochs` (the stage's) and `temperature` (the objective's) flat; which keys are allowed depends on the objective's name.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, JsonValue, ModelWrapValidatorHandler, PlainSerializer, ValidationError, model_serializer, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.foundation.plugins import find
from kdpipe.stages.objectives.objective import Objective

PACKAGE = "kdpipe.stages.objectives"
NAME_KEY = "objective"
_KNOWN_ERROR_TYPES = frozenset(get_args(core_schema.ErrorType))


def objective_class(name: str, *, at: str) -> type[Objective]:
    """The class that `name` (`kd`, or `package.module:Class`) stands for; ConfigError where there is none."""
    found = find(PACKAGE, name, at=at)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ConfigError(f"{name!r} is not an objective", at=at, do="name a class derived from kdpipe.stages.objectives.objective.Objective")
    return found


def parse_objective(name: str, keys: Mapping[str, JsonValue], *, at: str) -> Objective:
    """The objective called `name` with the configuration `keys`; ConfigError tells all that is wrong with them."""
    kind = objective_class(name, at=at)
    try:
        return kind.model_validate(dict(keys))
    except ValidationError as error:
        known = f"keys of {name}: {', '.join(kind.model_fields)}"
        told = [Problem(f"{'.'.join(map(str, entry['loc'])) or name}: {entry['msg']}", at, known) for entry in error.errors()]
        raise ConfigError.gather(told) from error


def as_keys(objective: Objective) -> dict[str, JsonValue]:
    """The objective as the keys that make it again, its name first."""
    return {NAME_KEY: objective.name, **objective.model_dump(mode="json")}


def _from_keys(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get(NAME_KEY), str):
        return parse_objective(value[NAME_KEY], {key: item for key, item in value.items() if key != NAME_KEY}, at=NAME_KEY)
    return value


ConfiguredObjective = Annotated[Objective, PlainSerializer(as_keys), BeforeValidator(_from_keys)]
"""The type of a field that holds any objective: dumped as its name and keys, and read back from them."""


class ObjectiveSection(BaseModel, extra="forbid", frozen=True):
    """A section with an objective's keys flat among its own. Mistakes in either are told with the key as written, all at once."""

    default_objective: ClassVar[str]

    objective: ConfiguredObjective

    @model_validator(mode="wrap")
    @classmethod
    def _split_keys(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, Mapping) or isinstance(value.get(NAME_KEY), Objective):
            return handler(value)
        name = value.get(NAME_KEY, cls.default_objective)
        if not isinstance(name, str):
            raise ValidationError.from_exception_data(cls.__name__, [{"type": "string_type", "loc": (NAME_KEY,), "input": name}])
        try:
            kind = objective_class(name, at=NAME_KEY)
        except ConfigError as error:
            problem = error.problems[0]
            unknown = PydanticCustomError("unknown_objective", "{message}; {advice}", {"message": problem.message, "advice": problem.do})
            raise ValidationError.from_exception_data(cls.__name__, [{"type": unknown, "loc": (NAME_KEY,), "input": name}]) from error
        own = {key: item for key, item in value.items() if key in cls.model_fields and key != NAME_KEY}
        rest = {key: item for key, item in value.items() if key not in cls.model_fields}
        mistakes: list[InitErrorDetails] = []
        try:
            objective = kind.model_validate(rest)
        except ValidationError as error:
            mistakes += [_as_raised(entry) for entry in error.errors()]
            objective = objective_class(cls.default_objective, at=NAME_KEY)()  # so that the section's own mistakes are found as well
        try:
            section = handler({**own, NAME_KEY: objective})
        except ValidationError as error:
            mistakes += [_as_raised(entry) for entry in error.errors()]
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return section

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in type(self).model_fields if name != NAME_KEY}
        return {**own, **as_keys(self.objective)}


def _as_raised(entry: ErrorDetails) -> InitErrorDetails:
    """An error that pydantic told, in the form in which it can be raised once more."""
    kind: str | PydanticCustomError = entry["type"]
    if kind not in _KNOWN_ERROR_TYPES:
        kind = PydanticCustomError(entry["type"], entry["msg"].replace("{", "{{"))
    raised: InitErrorDetails = {"type": kind, "loc": entry["loc"], "input": entry["input"]}
    if isinstance(kind, str) and "ctx" in entry:
        raised["ctx"] = entry["ctx"]
    return raised
