"""Adversarial samples of a whole set, batch by batch: what is replayed on other models and on files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, margins
from kdpipe.robustness.attacks.methods.pgd import Pgd
from kdpipe.robustness.intervals import BoolArray
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.robustness.scorecard import Threat

_CURVE_STEPS = 10


@dataclass(frozen=True)
class Replay:
    """Adversarial samples for the test samples at `indices`, (n, *shape) in their order. `crafted_on`: 'twin', 'teacher', 'file', …"""

    name: str
    method: AttackMethod
    crafted_on: str
    indices: Int64Array
    x_adv: Float32Array


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
) -> Replay:
    """The attack on the samples at `indices`. Hold a torch network still with `quiet` around it.

    `name` keys the noise: equal names meet equal noise on every model. `start`: (n, *shape) to begin from, within epsilon of the samples.
    """
    parts = []
    for begin in range(0, len(indices), batch_size):
        chosen = indices[begin : begin + batch_size]
        x, labels = _batch(samples, chosen)
        given = None if start is None else torch.from_numpy(start[begin : begin + batch_size])
        parts.append(method.craft(logits_of, x, labels, Draws(seed, f"attack/{name}", chosen), start=given).numpy())
    return Replay(name, method, crafted_on, indices, np.concatenate(parts))


def craft_curve(
    logits_of: Logits, samples: Samples, indices: Int64Array, epsilons: Sequence[float], *, norm: Threat, seed: int, batch_size: int
) -> tuple[CurvePoint, ...]:
    """PGD-10 at each epsilon > 0 in rising order. A sample that fell at a smaller one keeps what felled it: that lies in the larger ball too."""
    x_adv = [samples.read(indices[begin : begin + batch_size]) for begin in range(0, len(indices), batch_size)]
    standing: list[BoolArray] = [np.ones(len(part), dtype=np.bool_) for part in x_adv]
    points = []
    for epsilon in sorted(epsilons):
        method = Pgd(norm=norm, epsilon=epsilon, steps=_CURVE_STEPS)
        for number, begin in enumerate(range(0, len(indices), batch_size)):
            up = standing[number]
            chosen = indices[begin : begin + batch_size][up]
            if len(chosen) == 0:
                continue
            x, labels = _batch(samples, chosen)
            found = method.craft(logits_of, x, labels, Draws(seed, "attack/curve", chosen))
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


def _batch(samples: Samples, chosen: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(samples.read(chosen)), torch.from_numpy(samples.labels[chosen])


def _spread(where: BoolArray, values: BoolArray) -> BoolArray:
    spread = where.copy()
    spread[where] = values
    return spread
