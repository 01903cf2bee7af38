"""HopSkipJump: walks along the border by estimates of its normal; asks for the predicted class alone, and for nothing else.

Source: Chen, Jordan & Wainwright 2020 (arXiv:1904.02144): the estimate of the normal from signs with a baseline, the numbers of queries (100 at first, rising
with the square root of the iteration), the step sizes, the binary search of algorithm 1, the loop of algorithm 2.
Deviations: a sample is done once its border is within epsilon, for that is what was asked; where a `start` is given the walk begins on the way from the
sample through it; iterations that the budget does not cover are not begun.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.ball import distances, l2_norms, per_sample, project
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins

_FIRST_QUERIES = 100
_MOST_QUERIES = 10_000
_FIRST_TRIES = 100  # random images, until one is misread
_ALONG_THE_START = (2.0, 4.0, 8.0, 16.0, 32.0)  # multiples of the way to `start`
_HALVINGS = 20  # of a step that does not lead over the border
_CHUNK = 4096  # points asked at once


class HopSkipJump(AttackMethod):
    """`hopskipjump-<queries>`: a sample is left alone once the model errs on it. Decides by right or wrong; logits serve to rank what is handed back."""

    needs_gradients: ClassVar[bool] = False
    steps: int = Field(1000, ge=2, le=1_000_000, description="queries")
    restarts: Literal[1] = 1

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample a point within epsilon that the model errs on, or the one in the ball with the largest margin that was asked."""
        strongest = Strongest(x if start is None else start)
        generators = list(draws.generators())
        with torch.no_grad():
            oracle = _Oracle(logits_of, x, labels, self, strongest)
            for first in [x] if start is None else [x, start]:
                oracle.ask(first, torch.arange(len(x)))
            border, found = self._first_errors(oracle, x, generators, start)
            places = found.nonzero().squeeze(1)
            border = self._to_border(oracle, x, border, places)
            iteration = 0
            while len(places := oracle.going_on(places)) > 0:
                iteration += 1
                border = self._hop(oracle, x, border, places, generators, iteration)
        return strongest.x_adv

    def _first_errors(self, oracle: "_Oracle", x: Tensor, generators: list[torch.Generator], start: Tensor | None) -> tuple[Tensor, Tensor]:
        """For each sample a point, however far, that the model errs on, and whether there is one."""
        points, found = x.clone(), torch.zeros(len(x), dtype=torch.bool)
        for attempt in range(_FIRST_TRIES):
            places = oracle.going_on((~found).nonzero().squeeze(1))
            if len(places) == 0:
                break
            if start is not None and attempt < len(_ALONG_THE_START):
                tried = (x[places] + _ALONG_THE_START[attempt] * (start[places] - x[places])).clamp(0, 1)
            else:
                tried = torch.stack([torch.rand(x.shape[1:], generator=generators[place]) for place in places.tolist()])
            errs = oracle.ask(tried, places)
            points[places[errs]], found[places[errs]] = tried[errs], True
        return points, found

    def _to_border(self, oracle: "_Oracle", x: Tensor, far: Tensor, places: Tensor) -> Tensor:
        """The points at `places` drawn towards their samples as far as the model still errs."""
        far = far.clone()
        low, high = x.new_zeros(len(x)), torch.ones(len(x))
        theta = self._theta(x)
        if self.norm == "linf":
            high = distances(far, x, "linf").clamp_min(theta)
        while len(places := oracle.going_on(places[(high - low)[places] > self._precision(high[places], theta)])) > 0:
            middle = (low + high) / 2
            tried = self._drawn(x[places], far[places], middle[places])
            errs = oracle.ask(tried, places)
            high[places[errs]], low[places[~errs]] = middle[places[errs]], middle[places[~errs]]
        return self._drawn(x, far, high)

    def _precision(self, amount: Tensor, theta: float) -> Tensor:
        """How near the border is near enough: a share of the way (l2), or of the distance (linf)."""
        return torch.full_like(amount, theta) if self.norm == "l2" else theta * amount.clamp(theta, 1)

    def _drawn(self, x: Tensor, far: Tensor, amount: Tensor) -> Tensor:
        """`far` at the share `amount` of its way from `x` (l2), or within `amount` of it (linf)."""
        if self.norm == "l2":
            return torch.lerp(x, far, per_sample(amount, x))
        bound = per_sample(amount, x)
        return torch.minimum(torch.maximum(far, x - bound), x + bound)

    def _theta(self, x: Tensor) -> float:
        size = x[0].numel()
        return 1 / (math.sqrt(size) * size) if self.norm == "l2" else 1 / size**2

    def _hop(self, oracle: "_Oracle", x: Tensor, border: Tensor, places: Tensor, generators: list[torch.Generator], iteration: int) -> Tensor:
        size = x[0].numel()
        length = distances(border, x, self.norm)
        theta = self._theta(x)
        reach = 0.1 if iteration == 1 else math.sqrt(size) * theta if self.norm == "l2" else size * theta
        delta = torch.full_like(length, reach) if iteration == 1 else reach * length
        queries = min(int(_FIRST_QUERIES * math.sqrt(iteration)), _MOST_QUERIES)
        normal = x.clone()
        for place in places.tolist():
            allowed = min(queries, oracle.left(place) - 2)
            if allowed < 2:
                oracle.spend(place)
                continue
            normal[place] = self._normal(oracle, border[place], float(delta[place]), place, allowed, generators[place])
        places = oracle.going_on(places)
        step = length / math.sqrt(iteration)
        moved, waiting = border.clone(), places
        for _ in range(_HALVINGS):
            waiting = oracle.going_on(waiting)
            if len(waiting) == 0:
                break
            tried = (border[waiting] + per_sample(step[waiting], x) * normal[waiting]).clamp_(0, 1)
            errs = oracle.ask(tried, waiting)
            moved[waiting[errs]] = tried[errs]
            step[waiting[~errs]] /= 2
            waiting = waiting[~errs]
        return self._to_border(oracle, x, moved, oracle.going_on(places))

    def _normal(self, oracle: "_Oracle", point: Tensor, delta: float, place: int, queries: int, generator: torch.Generator) -> Tensor:
        """The direction away from the sample's class at its border: noise weighted by whether the model errs there."""
        shape = (queries, *point.shape)
        noise = torch.randn(shape, generator=generator) if self.norm == "l2" else 2 * torch.rand(shape, generator=generator) - 1
        noise = noise / per_sample(l2_norms(noise), noise)
        asked = (point + delta * noise).clamp_(0, 1)
        noise = (asked - point) / delta
        errs = oracle.ask_many(asked, place).to(noise.dtype) * 2 - 1
        mean = errs.mean()
        if mean == 1:
            direction = noise.mean(dim=0)
        elif mean == -1:
            direction = -noise.mean(dim=0)
        else:
            direction = (per_sample(errs - mean, noise) * noise).mean(dim=0)
        return direction.sign() if self.norm == "linf" else direction / l2_norms(direction[None]).squeeze()


class _Oracle:
    """The model as right or wrong, with each sample's budget; every point in the ball that is asked is offered to `strongest`."""

    def __init__(self, logits_of: Logits, x: Tensor, labels: Tensor, attack: HopSkipJump, strongest: Strongest) -> None:
        self.logits_of, self.x, self.labels, self.attack, self.strongest = logits_of, x, labels, attack, strongest
        self.spent = torch.zeros(len(x), dtype=torch.int64)

    def ask(self, points: Tensor, places: Tensor) -> Tensor:
        """Whether the model errs on one point for each of the samples at `places`, (k,) bool."""
        found = margins(self.logits_of(points), self.labels[places])
        self.spent[places] += 1
        self._offer(points, found, places)
        return found >= 0

    def ask_many(self, points: Tensor, place: int) -> Tensor:
        """Whether it errs on each of the points of the sample at `place`."""
        labels = self.labels[place].expand(len(points))
        found = torch.cat([margins(self.logits_of(part), labels[: len(part)]) for part in torch.split(points, _CHUNK)])
        self.spent[place] += len(points)
        best = found.argmax()
        inside = distances(points, self.x[place][None], self.attack.norm) <= self.attack.epsilon
        if bool(inside.any()):
            best = torch.where(inside, found, -torch.inf).argmax()
            self._offer(points[best][None], found[best][None], torch.tensor([place]))
        return found >= 0

    def going_on(self, places: Tensor) -> Tensor:
        """Those of `places` that stand and may ask on."""
        return places[(self.strongest.margins[places] < 0) & (self.spent[places] < self.attack.steps)]

    def left(self, place: int) -> int:
        """How many questions the sample has left."""
        return self.attack.steps - int(self.spent[place])

    def spend(self, place: int) -> None:
        """Take what is left of a budget that covers no further iteration."""
        self.spent[place] = self.attack.steps

    def _offer(self, points: Tensor, found: Tensor, places: Tensor) -> None:
        inside = distances(points, self.x[places], self.attack.norm) <= self.attack.epsilon
        if bool(inside.any()):
            chosen = points[inside]
            self.strongest.offer(project(chosen, self.x[places][inside], self.attack.epsilon, self.attack.norm), found[inside], places[inside])


plugin = HopSkipJump
