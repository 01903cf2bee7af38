"""Co-teaching: two networks, each learning only from the samples of a batch on which the other's loss is small.

Source: Han et al. 2018 (arXiv:1804.06872), algorithm 1. Wrong labels are learned last, so samples of small loss are mostly right; that the other
network chooses them keeps a network from confirming its own mistakes. The losses are averaged once over the samples that are kept
(the authors' code takes the mean and divides it by their number again).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdpipe.stages.memory_format import has_convolutions
from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.label_loss import LabelLoss
from kdpipe.stages.objectives.objective import Loss, Setting, Step, weighted


def smallest(losses: Tensor, share: float) -> Tensor:
    """The indices of the `share` of smallest losses, (batch,) to (kept,): rounded down, at least one; among equal ones the first."""
    kept = max(1, int(share * len(losses) + 1e-6))  # a product such as 0.6 * 5 must not fall below its whole number
    return losses.detach().argsort(stable=True)[:kept]


class Peer(nn.Module):
    """The second network; None where the student is no fresh network, and chooses for itself."""

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        self.network = network


class CoTeaching(LabelLoss):
    """`mean of CE(s, y) over the samples that the peer keeps + mean of CE(peer, y) over those that the student keeps`.

    Kept is the share 1 - noise_rate · min(progress / rise, 1) of each batch. The peer has initial weights of its own, is trained by the same optimiser and
    checkpointed; the student is the artifact. In `[prune]` and `[qat]` the student is trained already and a fresh peer would know less: it keeps the share
    1 - noise_rate by its own losses.
    """

    needs_teacher: ClassVar[bool] = False

    noise_rate: float = Field(0.2, ge=0, lt=1, description="share of the samples that are left out at the end: about that of the wrong labels")
    rise: float = Field(0.3, ge=0, le=1, description="share of the training over which that share rises from 0: as long as labels are not memorised")

    def kept_share(self, progress: float) -> float:
        """R: the share of a batch that is learned from, in (0, 1]; in the paper it falls over 10 of 200 epochs."""
        return 1 - self.noise_rate * (1.0 if progress >= self.rise else progress / self.rise)

    def auxiliary(self, setting: Setting) -> nn.Module:
        """The peer, in training mode and in the memory format that the training gives the student."""
        network = None if setting.fresh is None else setting.fresh()
        if network is not None and has_convolutions(network):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Peer(network).train()

    def loss(self, step: Step) -> Loss:
        """Both networks' terms; one pass through each."""
        assert isinstance(step.auxiliary, Peer)
        peer = step.auxiliary.network
        teacher = step.targets if self.uses_teacher else None
        logits = step.student(step.x)
        losses = F.cross_entropy(widened(logits), step.labels, reduction="none")
        if peer is None:
            return self.beside_the_teacher(losses[smallest(losses, 1 - self.noise_rate)].mean(), logits, teacher, step.progress)
        its_logits = peer(step.x)
        its_losses = F.cross_entropy(widened(its_logits), step.labels, reduction="none")
        kept = self.kept_share(step.progress)
        ours, its = losses[smallest(its_losses, kept)].mean(), its_losses[smallest(losses, kept)].mean()
        if teacher is None:
            return weighted(labels=(1.0, ours), peer=(1.0, its))
        share, temperature = self.teacher_share.at(step.progress), self.temperature.at(step.progress)
        divergence = torch.stack([kd_loss(one, teacher, temperature) for one in (logits, its_logits)]).sum()
        return weighted(labels=(1 - share, ours), peer=(1 - share, its), teacher=(share, divergence))


plugin = CoTeaching
