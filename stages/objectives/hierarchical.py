"""Distillation of hidden layers beside the logits: stage by stage the student's inside follows the teacher's.

Sources: attention transfer, Zagoruyko & Komodakis 2017 (arXiv:1612.03928), eq. 2; hints through a regressor, Romero et al. 2015 (arXiv:1412.6550), eq. 3.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.attention import attention_map
from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.hidden import LayerPair, PairedLayers, layer_pairs, same_size, watched_passes
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, Setting, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share, Weight


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of two feature maps' attention, averaged over the batch; a scalar in [0, 4].

    Maps (batch, channels, h, w) with any two channel counts, equal h and w. Attention: the channels' squares summed, as a
    vector over positions, of Euclidean length 1. Source: eq. 2 with p = 2; squared, as in the authors' code.
    """
    return (attention_map(student) - attention_map(teacher)).square().sum(dim=1).mean()


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two outputs of equal shape; a scalar."""
    return F.mse_loss(widened(student), widened(teacher))


class Hierarchical(PairedLayers):
    """`(1 - a) · T² · KL + a · CE + w · mean over layer pairs of their distance`.

    Layers left out are chosen: the last module of each spatial size, paired from the output backwards. Where two paired maps
    differ in size, the larger is average-pooled. `features` puts a trained 1x1 convolution (or linear layer) where widths differ.
    """

    match: Literal["attention", "features"] = Field("attention", description="attention maps, or features through a projector where widths differ")
    hidden_weight: Weight = Field(Scheduled.constant(10.0), description="w: weight of the hidden layers' term; number or schedule, >= 0")
    temperature: Positive = Field(Scheduled.constant(4.0), description="T of the logits' term; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.1), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]")

    def auxiliary(self, setting: Setting) -> nn.Module:
        """The layer pairs with their projectors."""
        pairs = layer_pairs(setting.student, setting.teachers[0], setting.example, self.student_layers, self.teacher_layers, at=self.name)
        return LayerPairs(pairs, self.match)

    def loss(self, step: Step) -> Loss:
        """All three terms at this point of the training; one pass through each network."""
        pairs = step.auxiliary
        assert isinstance(pairs, LayerPairs)
        passes = watched_passes(step, pairs.student_layers, pairs.teacher_layers)
        share = self.label_share.at(step.progress)
        return weighted(
            teacher=(1 - share, kd_loss(passes.logits, passes.target, self.temperature.at(step.progress))),
            labels=(share, F.cross_entropy(widened(passes.logits), step.labels)),
            hidden=(self.hidden_weight.at(step.progress), pairs(passes.student, passes.teacher)),
        )


class LayerPairs(nn.Module):
    """Which student layer follows which teacher layer, and the projectors between them."""

    def __init__(self, pairs: tuple[LayerPair, ...], match: str) -> None:
        super().__init__()
        self.student_layers = tuple(pair.student for pair in pairs)
        self.teacher_layers = tuple(pair.teacher for pair in pairs)
        self.match = match
        for pair in pairs:
            _require_comparable(pair, match)
        self.projectors = nn.ModuleList(_projector(pair.student_shape, pair.teacher_shape) if match == "features" else nn.Identity() for pair in pairs)

    def forward(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """The mean over the pairs of their distance, from outputs by module name; a scalar."""
        distances = []
        for ours, theirs, projector in zip(self.student_layers, self.teacher_layers, self.projectors, strict=True):
            a, b = same_size(student[ours], teacher[theirs].detach())
            distances.append(attention_distance(a, b) if self.match == "attention" else feature_distance(projector(a), b))
        return torch.stack(distances).mean()


def _projector(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """From the student's width to the teacher's; nothing where they are equal. Channels are axis 1 of maps, the last axis of others."""
    if len(student) == 4:
        return nn.Identity() if student[1] == teacher[1] else nn.Conv2d(student[1], teacher[1], 1, bias=False)
    return nn.Identity() if student[-1] == teacher[-1] else nn.Linear(student[-1], teacher[-1], bias=False)


def _require_comparable(pair: LayerPair, match: str) -> None:
    student, teacher = pair.student_shape, pair.teacher_shape
    if len(student) != len(teacher):
        problem = f"layer {pair.student!r} gives {student} and {pair.teacher!r} {teacher}: not comparable"
        raise ConfigError(problem, at="hierarchical", do="pair layers of one kind")
    if match == "attention" and len(student) != 4:
        raise ConfigError(f"layer {pair.student!r} gives {student}: attention needs feature maps", at="hierarchical", do="set match = 'features'")


plugin = Hierarchical
