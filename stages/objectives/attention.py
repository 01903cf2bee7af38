"""Attention transfer: the student looks where the teacher looks, stage by stage, and learns the rest from the labels.

Source: Zagoruyko & Komodakis 2017 (arXiv:1612.03928), section 3.1, eq. 2.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.hidden import PairedLayers, layer_pairs, same_size, watched_passes
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, Setting, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share, Weight


def attention_map(maps: Tensor, power: float = 2.0) -> Tensor:
    """Where a network looks: the channels' |value|^power summed, over positions, of Euclidean length 1; (batch, channels, h, w) to (batch, h · w).

    Maps without any activation have attention 0. Source: the spatial attention F_sum^p of section 3.1.
    """
    values = widened(maps)
    summed = values.square().sum(dim=1) if power == 2 else values.abs().pow(power).sum(dim=1)
    return F.normalize(summed.flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """The squared distance of two maps' attention, averaged over the batch; a scalar in [0, 4]. No gradient reaches the teacher.

    (batch, channels, h, w) with any channel counts; the larger is average-pooled to the smaller. Eq. 2 has the norm itself, the square is
    the authors' code's. Theirs averages over positions too, so that its weight of 1000 is one of 1000 / (h · w) here: 16 for 8x8 maps.
    """
    student, teacher = same_size(student, teacher.detach())
    return (attention_map(student, power) - attention_map(teacher, power)).square().sum(dim=1).mean()


class Attention(PairedLayers):
    """`CE + w / 2 · sum over layer pairs of attention_loss`, with the logits' part of `kd` for the labels' where `teacher_share` asks for it.

    Layers left out are chosen: the last module of each spatial size, paired from the output backwards.
    """

    hidden_weight: Weight = Field(Scheduled.constant(10.0), description="w: weight of the attention's term; number or schedule, >= 0")
    power: float = Field(2.0, ge=1, le=8, description="p: of the activations in the sum over channels; higher looks at the strongest alone")
    teacher_share: Share = Field(Scheduled.constant(0.0), description="share of the divergence from the teacher's logits; number or schedule, in [0, 1]")
    temperature: Positive = Field(Scheduled.constant(4.0), description="T of that divergence; number or schedule, > 0")

    def auxiliary(self, setting: Setting) -> nn.Module:
        """Which layers are compared; nothing in it is trained."""
        return _Watched(self, setting)

    def loss(self, step: Step) -> Loss:
        """All three terms at this point of the training; one pass through each network."""
        pairs = step.auxiliary
        assert isinstance(pairs, _Watched)
        passes = watched_passes(step, pairs.student_layers, pairs.teacher_layers)
        distances = [attention_loss(passes.student[a], passes.teacher[b], self.power) for a, b in zip(pairs.student_layers, pairs.teacher_layers, strict=True)]
        share = self.teacher_share.at(step.progress)
        return weighted(
            teacher=(share, kd_loss(passes.logits, passes.target, self.temperature.at(step.progress))),
            labels=(1 - share, F.cross_entropy(widened(passes.logits), step.labels)),
            hidden=(self.hidden_weight.at(step.progress) / 2, torch.stack(distances).sum()),
        )


class _Watched(nn.Module):
    """The names of the layers that are compared; without parameters."""

    def __init__(self, objective: Attention, setting: Setting) -> None:
        super().__init__()
        at = objective.name
        pairs = layer_pairs(setting.student, setting.teachers[0], setting.example, objective.student_layers, objective.teacher_layers, at=at)
        for pair in pairs:
            for name, shape in ((pair.student, pair.student_shape), (pair.teacher, pair.teacher_shape)):
                if len(shape) != 4:
                    raise ConfigError(f"layer {name!r} gives {shape}: attention needs feature maps", at=at, do="name layers with maps, or choose kd")
        self.student_layers = tuple(pair.student for pair in pairs)
        self.teacher_layers = tuple(pair.teacher for pair in pairs)


plugin = Attention
