"""The fast adaptive boundary attack towards other classes, one after the other: steps to the linearised border, drawn back towards the sample.
The third member of AutoAttack.

Source: Croce & Hein 2020 (arXiv:1907.02044): algorithm 1 with its projections onto a hyperplane within the value range, alpha_max = 0.1, eta = 1.05;
the targets as in AutoAttack (arXiv:2003.01690, section 4). Deviations: published FAB goes on after a success in search of the nearest adversarial point;
here a sample is done at its first one within the ball, which is then pushed out to the ball's edge where that is the more adversarial: its edge is what
we ask for, and replays on another model need more than the border.
"""

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.ball import distances, per_sample, project
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins, other_classes
from kdpipe.robustness.attacks.pgd import losses_and_gradient, start_noise, started
from kdpipe.robustness.scorecard import Threat

_TARGETS = 9
_ALPHA_MAX = 0.1  # the most that a step is drawn towards the sample
_OVERSHOOT = 1.05  # eta: a little beyond the border
_BACK = 0.9  # beta: what an adversarial point outside of the ball keeps of its way


class FabT(AttackMethod):
    """`fab-t-<steps>x<restarts>`: so many restarts for each of nine targets (all other classes where there are fewer), while the model stands."""

    steps: int = Field(100, ge=1, le=10_000, description="of each target")
    restarts: int = Field(1, ge=1, le=100, description="of each target; those after the first begin at random")

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample an adversarial point in the ball, or the one with the largest margin that was met in it; those wrong untouched are left alone."""
        strongest = Strongest(x)
        with torch.no_grad():
            logits = logits_of(x)
            strongest.offer(x, margins(logits, labels))
            if start is not None:
                strongest.offer(start, margins(logits_of(start), labels))
        targets = other_classes(logits, labels)[:, :_TARGETS]
        for run in range(self.restarts * targets.shape[1]):
            standing = (strongest.margins < 0).nonzero().squeeze(1)
            if len(standing) == 0:
                break
            restart, aim = divmod(run, targets.shape[1])
            begin = x[standing] if start is None else start[standing]
            if restart > 0:
                begin = self._random_start(x[standing], draws.at(standing), run)
            self._approach(logits_of, x, begin, labels, targets[:, aim], strongest, standing)
        self._push_out(logits_of, x, labels, strongest)
        return strongest.x_adv

    def _approach(self, logits_of: Logits, x: Tensor, x_adv: Tensor, labels: Tensor, targets: Tensor, strongest: Strongest, places: Tensor) -> None:
        """From `x_adv`, the points of the samples at `places`, towards one target each; samples leave once an adversarial point in their ball is found."""
        for step in range(self.steps):
            origin, wanted, aims = x[places], labels[places], targets[places]

            def lead(moved: Tensor, wanted: Tensor = wanted, aims: Tensor = aims) -> Tensor:
                own, aim = logits_of(moved).gather(1, torch.stack([wanted, aims], dim=1)).unbind(dim=1)
                return aim - own

            leads, normal = losses_and_gradient(x_adv.clone(), lead, step)
            x_adv = self._step(x_adv, origin, leads, normal)
            with torch.no_grad():
                found = margins(logits_of(x_adv), wanted)
            near = distances(x_adv, origin, self.norm) <= self.epsilon
            strongest.offer(x_adv[near], found[near], places[near])
            back = torch.lerp(origin, x_adv, _BACK)
            x_adv = torch.where(per_sample(found >= 0, x), back, x_adv)
            going_on = strongest.margins[places] < 0
            x_adv, places = x_adv[going_on], places[going_on]
            if len(places) == 0:
                return

    def _step(self, x_adv: Tensor, origin: Tensor, leads: Tensor, normal: Tensor) -> Tensor:
        """To the plane on which the linearised lead is 0, from the point and from the sample, mixed by the two lengths."""
        from_here = to_plane(x_adv, normal, -leads, self.norm)
        rest = leads + (normal * (origin - x_adv)).flatten(1).sum(dim=1)
        from_origin = to_plane(origin, normal, -rest, self.norm)
        zero = torch.zeros_like(from_here)
        here, there = distances(from_here, zero, self.norm), distances(from_origin, zero, self.norm)
        alpha = per_sample((here / (here + there).clamp_min(torch.finfo(here.dtype).tiny)).clamp_max(_ALPHA_MAX), origin)
        return torch.lerp(x_adv + _OVERSHOOT * from_here, origin + _OVERSHOOT * from_origin, alpha).clamp_(0, 1)

    def _random_start(self, x: Tensor, draws: Draws, run: int) -> Tensor:
        half = Attack(norm=self.norm, epsilon=self.epsilon / 2)
        noise = [start_noise((1, *x.shape[1:]), half, generator) for generator in draws.generators(run)]
        return started(x, torch.cat([part for part in noise if part is not None]), half)

    def _push_out(self, logits_of: Logits, x: Tensor, labels: Tensor, strongest: Strongest) -> None:
        length = distances(strongest.x_adv, x, self.norm)
        found = ((strongest.margins >= 0) & (length > 0)).nonzero().squeeze(1)
        if len(found) == 0:
            return
        near, far = x[found], strongest.x_adv[found]
        edge = project(near + (far - near) * per_sample(self.epsilon / length[found], near), near, self.epsilon, self.norm)
        with torch.no_grad():
            strongest.offer(edge, margins(logits_of(edge), labels[found]), found)


def to_plane(x: Tensor, normal: Tensor, rise: Tensor, norm: Threat) -> Tensor:
    """The shortest offset, (n, *shape), that changes `normal · x` by `rise` (n,) while `x` stays in [0, 1]; where none does, the one that comes closest.

    Every value goes as far as the multiplier lets it or until it meets its bound (arXiv:1907.02044, section 2.2 and appendix A): the total change is a
    piecewise linear function of the multiplier, whose right piece is found in the order in which values meet their bounds. In float64.
    """
    value, slope = x.flatten(1).double(), normal.flatten(1).double()
    direction = slope.sign() * rise.double().sign()[:, None]
    room = torch.where(direction > 0, 1 - value, value)
    speed = torch.ones_like(slope) if norm == "linf" else slope.abs()  # of the value itself, for a multiplier of 1
    gain = slope.abs() * speed
    bound = torch.where(gain > 0, room / speed.clamp_min(1e-300), 0)  # the multiplier at which the value meets its bound
    order = torch.from_numpy(bound.numpy().argsort(axis=1))  # a third of the time of torch's sort, which was a tenth of AutoAttack's
    ordered = bound.gather(1, order)
    gains = gain.gather(1, order)
    met = (gains * ordered).cumsum(dim=1)
    free = gains.sum(dim=1, keepdim=True) - gains.cumsum(dim=1)
    wanted = rise.double().abs()[:, None]
    reached = met + free * ordered >= wanted
    piece = reached.to(torch.int8).argmax(dim=1, keepdim=True)  # the first value that need not meet its bound
    before = (met - gains * ordered).gather(1, piece)
    exact = (wanted - before) / (free + gains).gather(1, piece).clamp_min(1e-300)
    multiplier = torch.where(reached.any(dim=1, keepdim=True), exact, ordered[:, -1:])
    return (direction * speed * torch.minimum(multiplier.expand_as(bound), bound)).to(x.dtype).reshape(x.shape)


plugin = FabT
