import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdpipe.stages.objectives.gradient_penalty import GradientPenalty, squared_gradient
from kdpipe.stages.objectives.objective import Step

LABELS = torch.tensor([0, 2, 1])


def linear():
    network = nn.Linear(4, 3).double()
    with torch.no_grad():
        network.weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    return network


def step_on(network, x, labels=LABELS):
    return Step(x, labels, torch.arange(len(x)), network, torch.Generator())


def test_of_a_linear_network_it_is_the_closed_form():
    network, x = linear(), torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight, p = network.weight.detach().numpy(), F.softmax(network(x), 1).detach().numpy()
    gradient = (p - np.eye(3)[LABELS.numpy()]) @ weight  # of the cross-entropy by x
    expected = -np.log(p[np.arange(3), LABELS.numpy()]).mean() + 2.5 * (gradient**2).sum(1).mean()
    loss = GradientPenalty(penalty_weight=2.5).loss(step_on(network, x))
    assert loss.total.item() == pytest.approx(expected)
    assert loss.terms["penalty"].item() == pytest.approx((gradient**2).sum(1).mean())


def test_it_is_what_finite_differences_of_the_loss_say():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    slopes = torch.zeros(3, 4, dtype=torch.float64)
    for column in range(4):
        nudge = torch.zeros(4, dtype=torch.float64)
        nudge[column] = 1e-6
        up, down = (F.cross_entropy(network(x + sign * nudge), LABELS, reduction="none") for sign in (1, -1))
        slopes[:, column] = ((up - down) / 2e-6).detach()
    assert GradientPenalty().loss(step_on(network, x)).terms["penalty"].item() == pytest.approx(slopes.square().sum(1).mean().item(), rel=1e-6)


def test_the_weights_gradient_is_that_of_finite_differences():
    x = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def penalty(weight):
        return squared_gradient(F.cross_entropy(torch.tanh(x) @ weight.T, LABELS, reduction="none"), x).mean()

    assert torch.autograd.gradcheck(penalty, linear().weight.detach().requires_grad_())


def test_without_weight_it_is_the_cross_entropy_and_with_it_every_weight_learns(step_of):
    objective = GradientPenalty(penalty_weight=0)
    step = step_of(objective, teachers=())
    expected = F.cross_entropy(step_of(objective, teachers=()).student(step.x), step.labels)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-6)
    GradientPenalty().loss(step).total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in step.student.parameters())
    assert step.x.grad is None
    assert not step.x.requires_grad


def test_twice_the_batch_changes_nothing():
    network, x = linear(), torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    once = GradientPenalty().loss(step_on(network, x)).total
    assert GradientPenalty().loss(step_on(network, x.repeat(2, 1), LABELS.repeat(2))).total.item() == pytest.approx(once.item())


@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(scale):
    network = linear().float()
    with torch.no_grad():
        network.weight.mul_(scale)
        network.bias.mul_(scale)
    loss = GradientPenalty().loss(step_on(network, torch.ones(1, 4), LABELS[:1])).total
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(network.weight.grad).all()


def test_steps_of_it_flatten_the_loss(step_of):
    def slope_after(weight):
        objective = GradientPenalty(penalty_weight=weight)
        step = step_of(objective, teachers=(), samples=64)
        optimizer = torch.optim.SGD(step.student.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            loss = objective.loss(step)
            loss.total.backward()
            optimizer.step()
        return loss.terms["penalty"].item()

    assert slope_after(1.0) < 0.5 * slope_after(0.0)
