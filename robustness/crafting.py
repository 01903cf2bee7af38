"""Adversarial samples of a whole set, batch by batch: what is replayed on other models and on files."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Ensemble, Logits, Part, margins
from kdpipe.robustness.attacks.methods.pgd import Pgd
from kdpipe.robustness.intervals import BoolArray
from kdpipe.robustness.kept_batches import KeptBatches
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.robustness.scorecard import Threat

_CURVE_STEPS = 10

Item = TypeVar("Item")


class Reporter(Protocol):
    """Whom a long crafting tells how far it is: the `Progress` of a stage."""

    def __call__(self, items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "batch") -> Iterable[Item]:
        """`items`, counted while they are taken."""
        ...

    def say(self, message: str) -> None:
        """One line for the user."""
        ...


@dataclass(frozen=True)
class Work:
    """How a crafting is watched, and where it keeps the batches that are done; neither changes a bit of what it makes."""

    progress: Reporter | None = None
    kept: KeptBatches | None = None

    def of(self, part: str) -> "Work":
        """The same for one model of several."""
        return Work(self.progress, None if self.kept is None else self.kept.of(part))


ALONE = Work()
"""Nobody watches, nothing is kept."""


@dataclass(frozen=True)
class Replay:
    """Adversarial samples for the test samples at `indices`, (n, *shape) in their order. `crafted_on`: 'twin', 'teacher', 'file', …

    `note`: what the attack's name does not say (`AttackMethod.note`).
    """

    name: str
    method: AttackMethod
    crafted_on: str
    indices: Int64Array
    x_adv: Float32Array
    note: str | None = None


@dataclass(frozen=True)
class CurvePoint:
    """The samples of one point of the epsilon curve."""

    epsilon: float
    indices: Int64Array
    x_adv: Float32Array


def craft(
    method: AttackMethod,
    name: str,
    logits_of: Logits,
    samples: Samples,
    indices: Int64Array,
    *,
    crafted_on: str,
    seed: int,
    batch_size: int,
    start: Float32Array | None = None,
    work: Work = ALONE,
) -> Replay:
    """The attack on the samples at `indices`. Hold a torch network still with `quiet` around it.

    `name` keys the noise: equal names meet equal noise on every model. `start`: (n, *shape) to begin from, within epsilon of the samples.
    """
    question = _question(method, name, crafted_on, indices, seed, batch_size, start)
    parts = []
    for begin in _watched(range(0, len(indices), batch_size), f"{name} on {crafted_on}", work):
        chosen = indices[begin : begin + batch_size]
        x, labels = _batch(samples, chosen)
        given = None if start is None else torch.from_numpy(start[begin : begin + batch_size])
        told = f"{name} on {crafted_on}, samples {begin + 1} to {begin + len(chosen)} of {len(indices)}"
        parts.append(_crafted(method, logits_of, x, labels, Draws(seed, f"attack/{name}", chosen), given, _Place(work, question, begin, told)))
    with torch.no_grad():
        classes = logits_of(_batch(samples, indices[:1])[0]).shape[1]
    return Replay(name, method, crafted_on, indices, np.concatenate(parts), method.note(classes))


def craft_curve(
    logits_of: Logits, samples: Samples, indices: Int64Array, epsilons: Sequence[float], *, norm: Threat, seed: int, batch_size: int, work: Work = ALONE
) -> tuple[CurvePoint, ...]:
    """PGD-10 at each epsilon > 0 in rising order. A sample that fell at a smaller one keeps what felled it: that lies in the larger ball too."""
    x_adv = [samples.read(indices[begin : begin + batch_size]) for begin in range(0, len(indices), batch_size)]
    standing: list[BoolArray] = [np.ones(len(part), dtype=np.bool_) for part in x_adv]
    points = []
    for epsilon in sorted(epsilons):
        method = Pgd(norm=norm, epsilon=epsilon, steps=_CURVE_STEPS)
        question = _question(method, "curve", f"of {sorted(epsilons)}", indices, seed, batch_size, None)
        for begin in _watched(range(0, len(indices), batch_size), f"curve at ε = {epsilon:.3g}", work):
            number = begin // batch_size
            up = standing[number]
            chosen = indices[begin : begin + batch_size][up]
            if len(chosen) == 0:
                continue
            x, labels = _batch(samples, chosen)
            place = _Place(work, question, begin, "curve")
            found = torch.from_numpy(_crafted(method, logits_of, x, labels, Draws(seed, "attack/curve", chosen), None, place))
            with torch.no_grad():
                standing[number] = _spread(up, (margins(logits_of(found), labels) < 0).numpy())
            x_adv[number] = x_adv[number].copy()
            x_adv[number][up] = found.numpy()
        points.append(CurvePoint(epsilon, indices, np.concatenate(x_adv)))
    return tuple(points)


def rescaled(logits_of: Logits, samples: Samples, indices: Int64Array, *, batch_size: int) -> Logits:
    """The same model with its logits divided so that the two largest lie 1 apart on average: softmax neither saturates nor flattens.

    Source: Gupta & Ajanthan 2022 (arXiv:2003.13511), section 4: a scalar temperature against vanishing gradients of quantized networks.
    """
    gaps = []
    for begin in range(0, len(indices), batch_size):
        with torch.no_grad():
            two = logits_of(_batch(samples, indices[begin : begin + batch_size])[0]).topk(2, dim=1).values
        gaps.append((two[:, 0] - two[:, 1]).double())
    temperature = max(float(torch.cat(gaps).mean()), 1e-6)
    return lambda x: logits_of(x) / temperature


@dataclass(frozen=True)
class _Place:
    """A batch of an attack: where it is kept, and what it is called."""

    work: Work
    question: Mapping[str, object]
    begin: int
    told: str

    def kept(self) -> Part | None:
        kept = self.work.kept
        return None if kept is None else kept.read(kept.key(self.question), self.begin)

    def keep(self, part: Part) -> None:
        kept = self.work.kept
        if kept is not None:
            kept.write(kept.key(self.question), self.begin, part)

    def tell(self, part: Part) -> None:
        if self.work.progress is not None:
            self.work.progress.say(f"{self.told}: {int((part.margins < 0).sum())} of {len(part.margins)} stand after {part.name}")


def _crafted(
    method: AttackMethod, logits_of: Logits, x: torch.Tensor, labels: torch.Tensor, draws: Draws, start: torch.Tensor | None, place: _Place
) -> Float32Array:
    """One batch: taken up where it was left, kept as far as it comes."""
    kept = place.kept()
    parts = [] if kept is None else [kept]
    if kept is None or not kept.last:
        if isinstance(method, Ensemble):
            for part in method.parts(logits_of, x, labels, draws, start=start, after=kept):
                place.keep(part)
                place.tell(part)
                parts = [part]
        else:
            x_adv = method.craft(logits_of, x, labels, draws, start=start)
            parts = [Part("whole", x_adv, x.new_zeros(len(x)), last=True)]
            place.keep(parts[0])
    found: Float32Array = parts[0].x_adv.numpy()
    return found


def _question(
    method: AttackMethod, name: str, crafted_on: str, indices: Int64Array, seed: int, batch_size: int, start: Float32Array | None
) -> Mapping[str, object]:
    """All that determines the samples but for the model and the data, which the caller keeps apart."""
    return {
        "method": f"{type(method).__module__}:{type(method).__qualname__}",
        "settings": method.model_dump(mode="json"),
        "name": name,
        "crafted_on": crafted_on,
        "indices": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
        "seed": seed,
        "batch_size": batch_size,
        "start": None if start is None else hashlib.sha256(np.ascontiguousarray(start).tobytes()).hexdigest(),
    }


def _watched(begins: range, label: str, work: Work) -> Iterable[int]:
    return begins if work.progress is None else work.progress(begins, label, total=len(begins), unit="batch")


def _batch(samples: Samples, chosen: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(samples.read(chosen)), torch.from_numpy(samples.labels[chosen])


def _spread(where: BoolArray, values: BoolArray) -> BoolArray:
    spread = where.copy()
    spread[where] = values
    return spread
