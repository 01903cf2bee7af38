"""Distillation: a small network learns from the teacher by the objective that the user chose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, JsonValue, model_validator
from torch import nn

from kdpipe.foundation.networks import Network, build_network, save_network
from kdpipe.foundation.randomness import stream
from kdpipe.stages.checkpoint import remove_checkpoints
from kdpipe.stages.history import write_history
from kdpipe.stages.memorisation import tell_memorisation
from kdpipe.stages.objectives.configured import ObjectiveSection
from kdpipe.stages.objectives.correction import Correction
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare
from kdpipe.stages.objectives.objective import Objective, RobustObjective
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.target_cache import TargetCache
from kdpipe.stages.teachers import FurtherTeacher, places, require_usable, teaching
from kdpipe.stages.training import CHECKPOINTS, train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.trust import require_trust

VERSION = 1
TOOLS = ("torch", "safetensors", "numpy")


class DistillConfig(ObjectiveSection, TrainingConfig, extra="forbid", frozen=True):
    """`[distill]`: which student, by which objective, how long. The keys of the objective stand beside these, its attack in `[distill.attack]`."""

    default_objective: ClassVar[str] = "rslad"

    student: str | None = Field(None, description="a built-in network's name or package.module:factory; absent: the task's default")
    student_arguments: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the student's factory")
    teachers: tuple[FurtherTeacher, ...] | None = Field(None, description="further teachers beside [teacher], each a table [[distill.teachers]]; absent: none")
    mixture: Mixture | None = Field(None, description="how several teachers become one, a table of its own; absent: equal weights")
    cache: TargetCache | None = Field(None, description="teachers' logits on clean samples are kept on the disk, a table of its own; absent: in memory")
    trust_teacher: bool | None = Field(None, description="true: learn even from a teacher that is right no more often than chance; absent: refuse")

    @model_validator(mode="after")
    def _teachers_fit(self) -> Self:
        require_usable(self.objective, self.shares(), self.mixture)
        return self

    def further_teachers(self) -> tuple[FurtherTeacher, ...]:
        """Those of `teachers` that are asked: none where the objective needs no teacher at all."""
        return self.teachers or () if self.objective.uses_teacher else ()

    def shares(self) -> tuple[TeacherShare, ...]:
        """The same, as those see them who learn from them."""
        return tuple(teacher.share() for teacher in self.further_teachers())

    def identity(self) -> dict[str, Any]:
        """What of the section decides the student: how a further teacher is trained does so through its own step, and the cache not at all."""
        return {**self.model_dump(mode="json"), "teachers": [share.model_dump(mode="json") for share in self.shares()] or None, "cache": None}


def check(sections: Mapping[str, Any], inputs: Inputs) -> None:
    """ConfigError where the student cannot be built; told before the teacher is trained."""
    fresh_student(sections["distill"], inputs, seed=0)


def fresh_student(config: DistillConfig, inputs: Inputs, *, seed: int, use: str = "distill/init") -> Network:
    """The student that `config` names, with its initial weights from the stream called `use`; training mode."""
    at = "[distill] student"
    spec = inputs.task.network_spec(config.student or inputs.task.default_student, config.student_arguments, inputs.data, at=at)
    return build_network(spec, stream(seed, use), at=at)


def run(inputs: Inputs, config: DistillConfig, context: Context) -> Path:
    """The artifact folder with the student, trained on the teacher in `inputs`."""
    student = fresh_student(config, inputs, seed=context.seed)
    objective, teachers = teaching(config.objective, config.shares(), config.mixture, inputs)
    judged = list(zip(places(config.objective, config.shares()), teachers, strict=True))
    require_trust(judged, inputs.data, context.progress, forced=bool(config.trust_teacher))
    _tell_of_default_attack(config.objective, context)
    if isinstance(config.objective, Correction):
        tell_memorisation(teachers[0], inputs.data, context.progress, seed=context.seed)

    def fresh() -> nn.Module:
        return fresh_student(config, inputs, seed=context.seed, use="distill/peer").module

    history = train(student, objective, teachers, inputs, config, context, label="distill", fresh=fresh)
    save_network(student, context.folder)
    write_history(context.folder, history)
    remove_checkpoints(context.folder / CHECKPOINTS)
    return context.folder


def _tell_of_default_attack(objective: Objective, context: Context) -> None:
    """How strong the attack is decides what the student will withstand: where nobody chose it, it is said."""
    if isinstance(objective, RobustObjective) and "epsilon" not in objective.attack.model_fields_set:
        attack = objective.attack
        context.progress.say(f"distill: no epsilon in [distill.attack], the default is used: {attack.norm}, epsilon {attack.epsilon:.4g}, {attack.steps} steps")
