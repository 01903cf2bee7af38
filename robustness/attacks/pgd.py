"""Projected gradient ascent on the input, within a ball and within [0, 1]: the inner loop of adversarial training and of evaluation.

Source: Madry et al. 2018 (arXiv:1706.06083), section 2.1. Only the input's gradient is computed; hold the networks still with `quiet`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.ball import l2_norms, per_sample, to_l2_ball_

LossOf = Callable[[Tensor], Tensor]
"""Adversarial samples (batch, *shape) to per-sample losses (batch,)."""

_TRADES_SIGMA = 0.001  # Zhang et al. 2019 (arXiv:1901.08573), their code: at the sample itself the KL has no gradient


def maximise(x: Tensor, loss_of: LossOf, attack: Attack, generator: torch.Generator) -> Tensor:
    """Samples within `attack.epsilon` of `x` and within [0, 1] that raise `loss_of`; (batch, *shape), detached, memory format of `x`.

    `x`: values in [0, 1]. With one restart the last iterate is returned (the training's fast path); with more, per sample
    the last iterate with the highest loss. The starts are drawn from `generator` on the CPU. Raises ConfigError when the loss is not finite.
    """
    x = x.detach()
    x_adv = ascend(x, started(x, start_noise(x.shape, attack, generator), attack), loss_of, attack)
    if attack.restarts == 1:
        return x_adv
    with torch.no_grad():
        best_loss = loss_of(x_adv)
        for _ in range(attack.restarts - 1):
            candidate = ascend(x, started(x, start_noise(x.shape, attack, generator), attack), loss_of, attack)
            loss = loss_of(candidate)
            better = loss > best_loss
            x_adv[better] = candidate[better]
            best_loss = torch.maximum(loss, best_loss)
    return x_adv


def ascend(x: Tensor, x_adv: Tensor, loss_of: LossOf, attack: Attack) -> Tensor:
    """The last of `attack.steps` projected ascent steps from `x_adv` (its storage is used), detached."""
    step = _linf_steps if attack.norm == "linf" else _l2_steps
    return step(x, x_adv, loss_of, attack)


def start_noise(shape: tuple[int, ...], attack: Attack, generator: torch.Generator) -> Tensor | None:
    """The offsets to start from, `shape` = (batch, *sample shape), float32 on the CPU; None for `start = "none"`."""
    if attack.start == "none":
        return None
    if attack.start == "gaussian":
        return torch.randn(shape, generator=generator).mul_(_TRADES_SIGMA)
    if attack.norm == "linf":
        return torch.rand(shape, generator=generator).mul_(2).sub_(1).mul_(attack.epsilon)
    # uniform in the L2 ball: a uniform direction, and a radius whose d-th power is uniform
    direction = torch.randn(shape, generator=generator)
    radius = torch.rand(shape[0], generator=generator).pow_(1 / direction[0].numel()).mul_(attack.epsilon)
    return direction.mul_(per_sample(radius / l2_norms(direction), direction))


def started(x: Tensor, noise: Tensor | None, attack: Attack) -> Tensor:
    """A fresh tensor: `x` plus `noise`, projected to the ball and to [0, 1]."""
    if noise is None:
        return x.clone()
    x_adv = x + noise.to(x)
    if attack.norm == "linf":
        return torch.clamp(x_adv, x - attack.epsilon, x + attack.epsilon).clamp_(0, 1)
    return to_l2_ball_(x_adv, x, attack.epsilon)


def _linf_steps(x: Tensor, x_adv: Tensor, loss_of: LossOf, attack: Attack) -> Tensor:
    step_size = attack.resolved_step_size()
    low, high = (x - attack.epsilon).clamp_(0, 1), (x + attack.epsilon).clamp_(0, 1)
    for step in range(attack.steps):
        _, gradient = losses_and_gradient(x_adv, loss_of, step)
        x_adv = x_adv.detach()  # same storage: the graph that held it is gone
        x_adv.add_(gradient.sign(), alpha=step_size)
        torch.clamp(x_adv, low, high, out=x_adv)
    return x_adv


def _l2_steps(x: Tensor, x_adv: Tensor, loss_of: LossOf, attack: Attack) -> Tensor:
    step_size = attack.resolved_step_size()
    for step in range(attack.steps):
        _, gradient = losses_and_gradient(x_adv, loss_of, step)
        x_adv = x_adv.detach()
        # a gradient may be tiny in float32 without being zero: scale by its largest value before its norm is taken
        gradient = gradient / per_sample(gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
        x_adv.add_(gradient * per_sample(step_size / l2_norms(gradient), gradient))
        x_adv = to_l2_ball_(x_adv, x, attack.epsilon)
    return x_adv


def losses_and_gradient(x_adv: Tensor, loss_of: LossOf, step: int) -> tuple[Tensor, Tensor]:
    """The samples' losses (n,) and the input's gradient (n, *shape), both detached; `x_adv` becomes a leaf that requires one.

    Raises ConfigError when a loss is not finite or a gradient is NaN; `step`, from 0, says when.
    """
    with torch.enable_grad():
        losses = loss_of(x_adv.requires_grad_())
        total = losses.sum()
        if not torch.isfinite(total):
            raise ConfigError(
                f"the attack's loss is {total.item()} at step {step + 1}",
                at="the network under attack",
                do="its logits are not finite: lower the learning rate or epsilon, or check the weights and the data",
            )
        if not total.requires_grad:  # the network cuts its graph: there is nothing to follow, and `masking` tells of it
            return losses.detach(), torch.zeros_like(x_adv)
        (gradient,) = torch.autograd.grad(total, x_adv, materialize_grads=True)
    if torch.isnan(gradient).any():  # its loss is finite all the same: a root at 0, an infinity times 0; the samples would become NaN unsaid
        raise ConfigError(
            f"the attack's gradient is NaN at step {step + 1}",
            at="the network under attack",
            do="an operation of it has no gradient where it is asked (a root or a norm at 0): add a small constant there, or use a black-box attack",
        )
    return losses.detach(), gradient
