"""The project's configuration: `kdpipe.toml` and `--set`, checked as a whole and resolved.

A section that is absent means its defaults; only `[prune]` is a step that must be asked for. Each section's model stands
where its idea lives (the stages' files, the task's, `pipeline/budgets.py`); this file puts them together, and tells all
that is wrong in one go.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.foundation.plugins import find, names
from kdpipe.pipeline.budgets import Budgets
from kdpipe.pipeline.device_records import dumped
from kdpipe.pipeline.device_sections import FILE as FILE
from kdpipe.pipeline.device_sections import FOLDER_NAME, FOLDER_NAME_RULE, LONGEST_NAME, devices_of
from kdpipe.pipeline.problems import Section, checked, objective_fields, unknown_key
from kdpipe.pipeline.pruning_target import pruning_target
from kdpipe.pipeline.stages import StageModule, config_model
from kdpipe.pipeline.target_sections import Target as Target
from kdpipe.pipeline.target_sections import TargetConfig as TargetConfig
from kdpipe.pipeline.target_sections import targets_of
from kdpipe.pipeline.toml_source import TomlSource, read_toml
from kdpipe.targets.devices.device import Settings as DeviceSettings
from kdpipe.tasks.task import Task

DEFAULT_TASK = "image-classification"

STAGE_SECTIONS = {"teacher": "teacher", "distill": "distill", "prune": "prune", "qat": "qat", "export": "export", "evaluate": "score", "bench": "bench"}
"""section to the stage that owns its model"""
SECTIONS = ("project", "task", *STAGE_SECTIONS, "targets", "devices", "budgets")

FILLED = {
    "teacher": {"name"},
    "prune": {"objective", "teachers", "mixture", "profile", "machine"},
    "qat": {"objective", "teachers", "mixture", "measured_in", "search_attack"},
    "evaluate": {"subject"},
    "bench": {"device"},
}
"""fields that the pipeline fills in and no file sets"""


class ProjectConfig(BaseModel, extra="forbid", frozen=True):
    """`[project]`."""

    name: str | None = Field(
        None,
        pattern=FOLDER_NAME,
        max_length=LONGEST_NAME,
        description=f"name of the project and of its folder in dist/, {FOLDER_NAME_RULE}; default: the folder's name",
    )
    seed: int = Field(0, ge=0, le=1_000_000_000, description="every random draw of the build follows from it")
    threads: int | None = Field(
        None, ge=1, le=1024, description="torch threads; default: the physical cores. Another number gives another order of sums and so other last digits"
    )


@dataclass(frozen=True)
class Config:
    """A checked configuration. `sections`: the models of `STAGE_SECTIONS` by section; `[prune]` is missing where nothing is pruned.

    `resolved`: all of it as one JSON value, defaults filled in.
    """

    project: Path
    name: str
    seed: int
    threads: int | None
    task: Task
    task_kind: str
    sections: Mapping[str, Any]
    targets: Mapping[str, Target]
    devices: Mapping[str, DeviceSettings]
    resolved: Mapping[str, Any]
    pruned_for: Target | None = None
    """the target whose measured latency decides what is pruned, in this build or not; None: none does"""

    @property
    def prunes(self) -> bool:
        """Whether there is a prune step."""
        return "prune" in self.sections


def read_config(project: Path, stages: Mapping[str, StageModule], *, settings: Sequence[str] = (), targets: Sequence[str] = ()) -> Config:
    """The project's configuration with `settings` (`distill.epochs=3`) applied, for `targets` (none: those of the file).

    Raises ConfigError with every problem of the file, each with its line.
    """
    path = project / FILE
    if not path.is_file():
        raise ConfigError(f"no {FILE} here", at=project, do="write one with: kdpipe init")
    return assemble(project, read_toml(path).overridden(list(settings)), stages, targets)


def assemble(project: Path, source: TomlSource, stages: Mapping[str, StageModule], targets: Sequence[str]) -> Config:
    """`read_config` from a source that was read."""
    values = source.values
    problems = [unknown_key(key, (), source, SECTIONS) for key in values if key not in SECTIONS]

    def section(name: str, model: type[BaseModel], more: Mapping[str, FieldInfo] | None = None) -> Any:
        built, found = checked(model, _without_switch(name, values.get(name, {})), Section((name,), source, frozenset(FILLED.get(name, ())), more))
        problems.extend(found)
        return built

    head = section("project", ProjectConfig)
    kind, task, found = _task(values.get("task", {}), source)
    problems += found
    built: dict[str, Any] = {}
    for name, stage in STAGE_SECTIONS.items():
        if name == "prune" and not _asked_for(values.get("prune")):
            continue
        model = config_model(stages[stage], stage)
        built[name] = section(name, model, objective_fields(model, values.get(name, {})))
    shared = section("budgets", Budgets)
    devices, found = devices_of(values.get("devices", {}), source)
    problems += found
    resolved_targets, found = targets_of(project, source, devices, shared or Budgets(), targets)
    problems += found
    pruned_for, found = pruning_target(built.get("prune"), project, source, devices, resolved_targets)
    problems += found
    if problems:
        raise ConfigError.gather(sorted(problems, key=lambda problem: _order(problem, source)))
    own_name = head.name or _name_of(project)
    return Config(
        project=project,
        name=own_name,
        seed=head.seed,
        threads=head.threads,
        task=task,
        task_kind=kind,
        sections=built,
        targets=resolved_targets,
        devices=devices,
        resolved={
            "project": {**head.model_dump(mode="json"), "name": own_name},
            "task": {"kind": kind, **task.model_dump(mode="json")},
            **{name: model.model_dump(mode="json") for name, model in built.items()},
            "targets": {name: target.resolved for name, target in resolved_targets.items()},
            "devices": {name: dumped(device) for name, device in devices.items()},
        },
        pruned_for=pruned_for,
    )


def _task(values: Any, source: TomlSource) -> tuple[str, Any, list[Problem]]:
    section = Section(("task",), source)
    if not isinstance(values, Mapping):
        return DEFAULT_TASK, None, checked(BaseModel, values, section)[1]
    kind = values.get("kind", DEFAULT_TASK)
    place = source.at(("task", "kind"))
    if not isinstance(kind, str):
        return DEFAULT_TASK, None, [Problem(f"kind = {kind}: a text in quotes is needed", place, f"known: {', '.join(task_kinds())}")]
    try:
        model = task_model(kind, at=place)
    except ConfigError as error:
        return kind, None, [Problem(f"kind = {kind!r}: {problem.message}", place, problem.do) for problem in error.problems]
    rest = values if "kind" in model.model_fields else {key: value for key, value in values.items() if key != "kind"}
    task, found = checked(model, rest, section)
    return kind, task, found


def task_kinds() -> list[str]:
    """The names of the tasks that ship."""
    return names("kdpipe.tasks")


def task_model(kind: str, *, at: str) -> type[BaseModel]:
    """The model of `[task]` for this kind; ConfigError where there is none."""
    if ":" not in kind and kind not in task_kinds():
        near = difflib.get_close_matches(kind, task_kinds(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError("there is no such task", at=at, do=f"{hint}known: {', '.join(task_kinds())}; your own: package.module:Class")
    model = find("kdpipe.tasks", kind, at=at)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ConfigError("it is not a task", at=at, do="name a pydantic model that is a kdpipe.tasks.task.Task")
    return model


def _asked_for(values: Any) -> bool:
    """Whether `[prune]` is there and not switched off by `enabled = false`."""
    return values is not None and not (isinstance(values, Mapping) and values.get("enabled") is False)


def _without_switch(name: str, values: Any) -> Any:
    """`[prune]` without `enabled`, which decides whether there is such a step, not how it goes."""
    if name == "prune" and isinstance(values, Mapping) and isinstance(values.get("enabled"), bool):
        return {key: value for key, value in values.items() if key != "enabled"}
    return values


def _name_of(project: Path) -> str:
    """The folder's name, made fit for a path in dist/."""
    kept = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in project.resolve().name)
    return kept.strip(".-_")[:LONGEST_NAME] or "project"


def _order(problem: Problem, source: TomlSource) -> tuple[bool, int]:
    """By line; what is not in the file comes last."""
    name, _, line = (problem.at or "").rpartition(":")
    return (False, int(line)) if name == source.name and line.isdigit() else (True, 0)
