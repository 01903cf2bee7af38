"""Distillation: a small network learns from the teacher by the objective that the user chose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, JsonValue

from kdpipe.foundation.networks import Network, build_network, load_network, save_network
from kdpipe.foundation.randomness import stream
from kdpipe.stages.checkpoint import remove_checkpoints
from kdpipe.stages.objectives.configured import ObjectiveSection
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import CHECKPOINTS, TrainingConfig, train, write_history

VERSION = 1
TOOLS = ("torch", "safetensors", "numpy")


class DistillConfig(ObjectiveSection, TrainingConfig, extra="forbid", frozen=True):
    """`[distill]`: which student, by which objective, how long. The keys of the objective stand beside these, its attack in `[distill.attack]`."""

    default_objective: ClassVar[str] = "rslad"

    student: str | None = Field(None, description="a built-in network's name or package.module:factory; absent: the task's default")
    student_arguments: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the student's factory")


def check(sections: Mapping[str, Any], inputs: Inputs) -> None:
    """ConfigError where the student cannot be built; told before the teacher is trained."""
    fresh_student(sections["distill"], inputs, seed=0)


def fresh_student(config: DistillConfig, inputs: Inputs, *, seed: int) -> Network:
    """The student that `config` names, with its initial weights; training mode."""
    at = "[distill] student"
    spec = inputs.task.network_spec(config.student or inputs.task.default_student, config.student_arguments, inputs.data, at=at)
    return build_network(spec, stream(seed, "distill/init"), at=at)


def run(inputs: Inputs, config: DistillConfig, context: Context) -> Path:
    """The artifact folder with the student, trained on the teacher in `inputs`."""
    student = fresh_student(config, inputs, seed=context.seed)
    teacher = load_network(inputs.artifacts["teacher"]) if config.objective.needs_teacher else None
    history = train(student, config.objective, teacher, inputs, config, context, label="distill")
    save_network(student, context.folder)
    write_history(context.folder, history)
    remove_checkpoints(context.folder / CHECKPOINTS)
    return context.folder
