import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.method import Draws, margins, parse_attack


def restated(logits_of, x, labels, norm, epsilon, steps):
    """Algorithm 1 of Dong et al. 2018 with mu = 1, all iterates."""
    momentum, x_adv, passed = torch.zeros_like(x), x, []
    for _ in range(steps):
        moved = x_adv.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits_of(moved), labels, reduction="sum"), moved)
        momentum = momentum + gradient / gradient.abs().sum(1, keepdim=True)
        x_adv = x_adv + epsilon / steps * (momentum.sign() if norm == "linf" else momentum / momentum.norm(dim=1, keepdim=True))
        x_adv = x_adv.clamp(0, 1)
        passed.append(x_adv)
    return passed


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_passes_the_points_of_the_papers_algorithm_and_returns_the_most_adversarial(norm):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(12, 16, generator=generator), torch.randn(16, 4, generator=generator)
    logits_of = lambda x: torch.tanh((x - 0.5) @ first) @ second  # noqa: E731
    x, labels = torch.rand(6, 12, generator=generator), torch.arange(6) % 4
    attack = parse_attack("mi-fgsm-8", norm=norm, epsilon=0.3, at="here")
    x_adv = attack.craft(logits_of, x, labels, Draws(0, "test", np.arange(6)))
    passed = torch.stack([x, *restated(logits_of, x, labels, norm, 0.3, 8)])
    found = torch.stack([margins(logits_of(point), labels) for point in passed])
    expected = passed[found.argmax(0), torch.arange(6)]
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_a_vanishing_gradient_is_no_trouble():
    x = torch.full((2, 3), 0.5)
    logits_of = lambda x: 1e-36 * x  # noqa: E731
    x_adv = parse_attack("mi-fgsm", norm="linf", epsilon=0.1, at="here").craft(logits_of, x, torch.tensor([0, 1]), Draws(0, "test", np.arange(2)))
    torch.testing.assert_close(x_adv[0], torch.tensor([0.4, 0.6, 0.6]))
