"""Auto-PGD: projected ascent with momentum that halves its own step and goes back to its best point when it stops rising.

Source: Croce & Hein 2020 (arXiv:2003.01690), algorithm 1: conditions 1 and 2 for each sample by itself, alpha = 0.75, rho = 0.75, first step 2 * epsilon.
"""

import torch
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.ball import per_sample, project, steepest
from kdpipe.robustness.attacks.pgd import LossOf, losses_and_gradient

_ALPHA = 0.75  # share of the new step; the rest is momentum
_RHO = 0.75  # share of the steps since the last checkpoint that have to rise


def climb(x: Tensor, x_adv: Tensor, loss_of: LossOf, attack: Attack) -> Tensor:
    """The last of `attack.steps` steps from `x_adv`, detached; `attack.step_size` is not used."""
    looks = checkpoints(attack.steps)
    losses, gradient = losses_and_gradient(x_adv, loss_of, 0)
    x_adv = x_adv.detach()
    before, best, best_losses, best_gradient = x_adv, x_adv.clone(), losses.clone(), gradient.clone()
    step_size = x.new_full((len(x),), 2 * attack.epsilon)
    rises, seen = torch.zeros_like(step_size), 0
    halved, best_at_look = torch.zeros_like(step_size, dtype=torch.bool), losses.clone()
    for step in range(attack.steps):
        moved = project(x_adv + per_sample(step_size, x) * steepest(gradient, attack.norm), x, attack.epsilon, attack.norm)
        if step > 0:
            moved = project(x_adv + _ALPHA * (moved - x_adv) + (1 - _ALPHA) * (x_adv - before), x, attack.epsilon, attack.norm)
        before, x_adv = x_adv, moved
        if step + 1 == attack.steps:
            break  # nothing follows from the last point's loss
        last_losses = losses
        losses, gradient = losses_and_gradient(x_adv, loss_of, step + 1)
        x_adv = x_adv.detach()
        rises += losses > last_losses
        better = losses > best_losses
        best[better], best_gradient[better] = x_adv[better], gradient[better]
        best_losses = torch.maximum(losses, best_losses)
        if step + 1 in looks:
            stuck = (rises < _RHO * (step + 1 - seen)) | (~halved & (best_losses <= best_at_look))
            step_size[stuck] /= 2
            x_adv, gradient = torch.where(per_sample(stuck, x), best, x_adv), torch.where(per_sample(stuck, x), best_gradient, gradient)
            losses = torch.where(stuck, best_losses, losses)
            rises, seen, halved, best_at_look = torch.zeros_like(rises), step + 1, stuck, best_losses.clone()
    return x_adv


def checkpoints(steps: int) -> frozenset[int]:
    """After how many steps the ascent is looked at: section 3.2, the gaps shrinking from 22 % of the steps to 6 %."""
    percents, gap = [22], 22
    while percents[-1] < 100:
        gap = max(gap - 3, 6)
        percents.append(percents[-1] + gap)
    return frozenset(-(-percent * steps // 100) for percent in percents if percent < 100)  # rounded up
