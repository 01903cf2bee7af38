"""Distillation: a small network learns from the teacher by the objective that the user chose."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, JsonValue

from kdpipe.foundation.networks import build_network, load_network, save_network
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


def run(inputs: Inputs, config: DistillConfig, context: Context) -> Path:
    """The artifact folder with the student, trained on the teacher in `inputs`."""
    spec = inputs.task.network_spec(config.student or inputs.task.default_student, config.student_arguments, inputs.data, at="[distill] student")
    student = build_network(spec, stream(context.seed, "distill/init"), at="[distill] student")
    teacher = load_network(inputs.artifacts["teacher"]) if config.objective.needs_teacher else None
    history = train(student, config.objective, teacher, inputs, config, context, label="distill")
    save_network(student, context.folder)
    write_history(context.folder, history)
    remove_checkpoints(context.folder / CHECKPOINTS)
    return context.folder
