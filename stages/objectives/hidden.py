"""Looking into networks: the outputs of named modules, which modules end a stage, and which of two networks' layers belong together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.objective import Objective, Step


@contextmanager
def watched(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that each pass through `module` meanwhile fills with the outputs of the submodules called `names`, with their graphs.

    A submodule that is called several times leaves its last output.
    """
    outputs: dict[str, Tensor] = {}
    handles = [module.get_submodule(name).register_forward_hook(partial(_keep, outputs, name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class PairedLayers(Objective):
    """An objective that compares layers of student and teacher: which ones, where the user names them."""

    student_layers: tuple[str, ...] | None = Field(None, min_length=1, description="names of the student's modules; absent: chosen by spatial size")
    teacher_layers: tuple[str, ...] | None = Field(None, min_length=1, description="names of the teacher's modules, in the same order")

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> Self:
        ours, theirs = self.student_layers, self.teacher_layers
        if (ours is None) != (theirs is None):
            raise ValueError("student_layers and teacher_layers go together: give both, or neither")
        if ours is not None and theirs is not None and len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} student_layers and {len(theirs)} teacher_layers cannot be paired")
        return self


@dataclass(frozen=True)
class Passes:
    """Logits of student and teacher on a step's batch, (batch, classes), and by name the outputs of the watched layers; the teacher's without a graph."""

    logits: Tensor
    target: Tensor
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]


def watched_passes(step: Step, student_layers: Sequence[str], teacher_layers: Sequence[str]) -> Passes:
    """One pass through the teacher and one through the student, with these layers watched."""
    with watched(step.teacher.module, teacher_layers) as theirs:
        target = step.teacher(step.x)
    with watched(step.student, student_layers) as ours:
        logits = step.student(step.x)
    return Passes(logits, target, ours, theirs)


def stage_ends(module: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The submodules that end a stage, in the order in which they run, with their outputs' shapes.

    A stage ends with the last submodule whose output has one spatial size (networks of images), or one width (others; the
    logits are no stage). What runs before the first layer with weights, and maps of one pixel, are left out.
    """
    ran = _outputs_in_order(module, example)
    maps = {name: shape for name, shape in ran.items() if len(shape) == 4 and shape[2] * shape[3] > 1}
    last: dict[tuple[int, ...], str]
    if maps:
        last = {shape[2:]: name for name, shape in maps.items()}
    else:
        *hidden, logits = list(ran.items()) or [("", ())]
        last = {shape[1:]: name for name, shape in hidden if len(shape) >= 2 and shape != logits[1]}
    ends = set(last.values())
    return {name: shape for name, shape in ran.items() if name in ends}


def output_shapes(module: nn.Module, names: Sequence[str], example: Tensor, *, at: str) -> dict[str, tuple[int, ...]]:
    """The output shapes of the submodules called `names`; ConfigError when one is not there or does not run."""
    ran = _outputs_in_order(module, example, all_of_them=True)
    for name in names:
        if name not in ran:
            some = ", ".join(list(stage_ends(module, example))[:6])
            raise ConfigError(f"no layer {name!r} runs in the network", at=at, do=f"layers that end a stage: {some}; absent keys choose by themselves")
    return {name: ran[name] for name in names}


@dataclass(frozen=True)
class LayerPair:
    """A student's module, the teacher's that it follows, and the shapes of their outputs for an example."""

    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]


def layer_pairs(
    student: nn.Module, teacher: nn.Module, example: Tensor, student_layers: Sequence[str] | None, teacher_layers: Sequence[str] | None, *, at: str
) -> tuple[LayerPair, ...]:
    """The named layers in pairs; where none are named, the stages' ends, paired from the output backwards. In the networks' order, at least one.

    Both lists are given, of equal length, or neither. `at`: who asks. ConfigError where a layer is not there, or no pair is found.
    """
    if student_layers is not None and teacher_layers is not None:
        ours = output_shapes(student, student_layers, example, at="student_layers")
        theirs = output_shapes(teacher, teacher_layers, example, at="teacher_layers")
        names = list(zip(student_layers, teacher_layers, strict=True))
    else:
        ours, theirs = stage_ends(student, example), stage_ends(teacher, example)
        names = list(zip(reversed(ours), reversed(theirs), strict=False))[::-1]
    if not names:
        raise ConfigError("no hidden layers found to compare", at=at, do="give student_layers and teacher_layers, or choose kd")
    return tuple(LayerPair(a, b, ours[a], theirs[b]) for a, b in names)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (batch, channels, h, w), the larger average-pooled to the smaller; outputs that are no maps as they are."""
    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def _outputs_in_order(module: nn.Module, example: Tensor, *, all_of_them: bool = False) -> dict[str, tuple[int, ...]]:
    """Submodule name to output shape, in the order in which they end; the modules' modes are the caller's."""
    ran: dict[str, tuple[int, ...]] = {}
    started = [all_of_them]

    def note(name: str, layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        started[0] = started[0] or any(True for _ in layer.parameters())
        if started[0] and isinstance(output, Tensor):
            ran.pop(name, None)  # the last call counts
            ran[name] = tuple(output.shape)

    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _keep(outputs: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
    outputs[name] = output
