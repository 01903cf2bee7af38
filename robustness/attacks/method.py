"""The attacks that a model is judged with: one file each in `robustness/attacks/methods`, named as in `[evaluate] attacks`.

`fgsm`, `pgd-20` (20 steps), `pgd-10x5` (10 steps, 5 restarts), `square-500` (500 queries).
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.plugins import find
from kdpipe.foundation.predictor import Predictor
from kdpipe.foundation.randomness import stream
from kdpipe.robustness.scorecard import Threat

Logits = Callable[[Tensor], Tensor]
"""Samples (n, *shape) to logits (n, classes); differentiable where the method asks for gradients."""

_PACKAGE = "kdpipe.robustness.attacks.methods"
_NAME = re.compile(r"(?P<method>.+?)(?:-(?P<steps>\d+)(?:x(?P<restarts>\d+))?)?")


@dataclass(frozen=True)
class Draws:
    """The randomness of one attack: a stream for each sample and restart, so that a sample's noise does not depend on its batch."""

    seed: int
    name: str
    indices: npt.NDArray[np.int64]

    def generators(self, restart: int = 0) -> Iterator[torch.Generator]:
        """One generator for each sample, in order."""
        return (stream(self.seed, f"{self.name}/restart-{restart}/sample-{index}") for index in self.indices)

    def of(self, part: str) -> "Draws":
        """Those of one part of an attack, independent of its others."""
        return Draws(self.seed, f"{self.name}/{part}", self.indices)

    def at(self, places: Tensor) -> "Draws":
        """Those of the samples at `places` (int64) alone."""
        return Draws(self.seed, self.name, self.indices[places.numpy()])


class AttackMethod(BaseModel, extra="forbid", frozen=True):
    """An untargeted attack on single samples: epsilon in the input's value range, samples stay in [0, 1].

    A plug-in narrows `steps` and `restarts` to what it can do and gives them defaults.
    """

    needs_gradients: ClassVar[bool] = True
    norm: Threat
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=1)]
    restarts: Annotated[int, Field(ge=1)] = 1

    @abstractmethod
    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """The adversarial samples, (n, *shape), detached: per sample the one with the largest `margins` that was met.

        `start`: samples in the ball to begin from instead of a random draw; the result is never less adversarial than they are.
        A method that is told the class alone sees errors, not margins: there an error stays an error.
        """

    def note(self, classes: int) -> str | None:
        """What a reader must know of the attack on a model of so many classes that its name does not say; None where there is nothing."""
        return None


@dataclass(frozen=True)
class Part:
    """Where an attack stands after one of its parts: the samples as they are now, (n, *shape), their margins, (n,), and whether it was the last part."""

    name: str
    x_adv: Tensor
    margins: Tensor
    last: bool


class Ensemble(AttackMethod):
    """An attack of several members, one after the other, that can be watched and taken up between any two of them."""

    @abstractmethod
    def parts(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None, after: Part | None = None) -> Iterator[Part]:
        """The state after each member, the last one marked; with `after` the members that follow it, as if there had been no break."""

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial point of the members that met it."""
        *_, whole = self.parts(logits_of, x, labels, draws, start=start)
        return whole.x_adv


def parse_attack(name: str, *, norm: Threat, epsilon: float, at: str) -> AttackMethod:
    """The attack that `name` stands for, `<method>[-<steps>[x<restarts>]]`; `at` says where the name was written.

    Raises ConfigError for an unknown method, and for steps, restarts or norm that it does not have.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError("the name of an attack is empty", at=at, do="write for instance 'fgsm', 'pgd-20' or 'pgd-10x5'")
    method = cast(type[AttackMethod], find(_PACKAGE, match["method"], at=at))
    budget = {key: int(match[key]) for key in ("steps", "restarts") if match[key] is not None}
    try:
        return method(norm=norm, epsilon=epsilon, **budget)
    except ValidationError as error:
        facts = "; ".join(f"{'.'.join(map(str, fault['loc']))} = {fault['input']}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(
            f"{name!r} is not an attack that {match['method']!r} can do: {facts}", at=at, do="write <method>-<steps>x<restarts>, e.g. 'pgd-10x5'"
        ) from error


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """How far each sample is over the border, (n,): the largest other logit less the label's. From 0 on it is an error: a tie is one.

    Ties are common in int8 files, and which class then wins is the runtime's accident.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)
    return others - own


def other_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes that are not the label, (n, classes - 1) int64, from the largest logit to the smallest: what targeted attacks aim at, in order."""
    masked = logits.scatter(1, labels[:, None], float("-inf"))
    return masked.argsort(dim=1, descending=True, stable=True)[:, :-1]


class Strongest:
    """Per sample the most adversarial point met so far: that with the largest margin."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.margins = x.new_full((len(x),), float("-inf"))

    def offer(self, x_adv: Tensor, found: Tensor, where: Tensor | None = None) -> None:
        """Take over the samples whose margins `found` are larger; `where`: their places, (n,) int64, if not all samples are offered."""
        places = torch.arange(len(self.margins)) if where is None else where
        better = found > self.margins[places]
        self.x_adv[places[better]] = x_adv[better]
        self.margins[places[better]] = found[better]


def asked(predictor: Predictor) -> Logits:
    """A predictor without gradients as `Logits`, for black-box methods. Raises VerificationError when it answers with NaN."""

    def logits_of(x: Tensor) -> Tensor:
        logits = predictor(np.ascontiguousarray(x.numpy()))
        if np.isnan(logits).any():
            raise VerificationError("the model answers with NaN", at="the model under attack", do="check its weights and calibration, then build it again")
        return torch.from_numpy(logits)

    return logits_of
