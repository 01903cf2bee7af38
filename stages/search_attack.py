"""What a candidate file of a search stands under attack: PGD on its twin, and on the network without any rounding, replayed on the file.

A sample counts as right only where the file is right on both. Those of the network without rounding are made once: they catch a twin whose rounding hides its
gradients, which PGD on the twin alone would take for robustness. Fast, and so weaker than what `[evaluate]` judges the shipped file with.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field
from torch import nn

from kdpipe.foundation.predictor import Float32Array, Predictor, TorchPredictor
from kdpipe.robustness.attacks.methods.pgd import Pgd
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import craft
from kdpipe.robustness.intervals import BoolArray, accuracy
from kdpipe.robustness.samples import Int64Array, Samples, stratified
from kdpipe.robustness.scorecard import Figure, Threat

STEPS = 20
_BATCH = 256


class SearchAttack(BaseModel, extra="forbid", frozen=True):
    """The ball of the attack: that of `[evaluate]`."""

    norm: Threat
    epsilon: float = Field(gt=0, allow_inf_nan=False, description="radius in the input's value range")

    @property
    def told(self) -> str:
        """The attack in words."""
        return f"PGD-{STEPS}, {self.norm}, ε = {self.epsilon:.3g}"


@dataclass(frozen=True)
class Replayed:
    """Adversarial samples of a stratified draw of a split, (n, *shape) each, with their labels (n,)."""

    crafted: tuple[Float32Array, ...]
    labels: Int64Array

    def stood(self, predictor: Predictor) -> Figure:
        """Per cent of the samples that the predictor gets right in every version, with Wilson's interval."""
        right: BoolArray = np.ones(len(self.labels), dtype=np.bool_)
        for x_adv in self.crafted:
            answers = [predictor(x_adv[begin : begin + _BATCH]).argmax(1) for begin in range(0, len(x_adv), _BATCH)]
            right &= np.concatenate(answers) == self.labels
        return accuracy(right)


class UnderAttack:
    """The attack on a draw of `n` samples of a split, equal in noise for every network that it meets.

    `limit`: per cent that must stand, lower 95 % bound; `floating`: what the network without any rounding stands.
    """

    def __init__(self, attack: SearchAttack, split: Samples, n: int, limit: float, floating: nn.Module, seed: int) -> None:
        self.attack, self.limit = attack, limit
        self._split, self._seed = split, seed
        self._indices = stratified(split.labels, n, seed=seed)
        self._on_floating = self._crafted(floating)
        self.floating = Replayed((self._on_floating,), split.labels[self._indices]).stood(TorchPredictor(floating))

    def against(self, twin: nn.Module) -> Replayed:
        """What the file of this frozen twin has to stand."""
        return Replayed((self._on_floating, self._crafted(twin)), self._split.labels[self._indices])

    def _crafted(self, module: nn.Module) -> Float32Array:
        method = Pgd(norm=self.attack.norm, epsilon=self.attack.epsilon, steps=STEPS)
        with quiet(module):
            replay = craft(method, "search", module, self._split, self._indices, crafted_on="twin", seed=self._seed, batch_size=_BATCH)
        return replay.x_adv
