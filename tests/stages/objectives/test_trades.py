import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.divergence import kl_per_sample
from kdpipe.stages.objectives.trades import Trades

ATTACK = Attack(epsilon=0.1, steps=4)


def batchmean(first, second):
    return F.kl_div(F.log_softmax(second, 1), F.softmax(first, 1), reduction="batchmean")


def restated(step, beta):
    """The published loop, which recomputes the clean prediction at every attack step; loss with its graph."""
    student = copy.deepcopy(step.student).eval()
    x_adv = (step.x + 0.001 * torch.randn(step.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(batchmean(student(step.x), student(x_adv)), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 4 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    student.train()
    clean = student(step.x)
    return F.cross_entropy(clean, step.labels) + beta * batchmean(clean, student(x_adv.detach())), student


def test_value_and_gradient_are_those_of_the_published_loop(step_of):
    objective = Trades(attack=ATTACK)
    step = step_of(objective, teachers=())
    expected, student = restated(step, 6.0)
    loss = objective.loss(step).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(step.student.parameters(), student.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)  # both sides of the KL carry a gradient, as theirs do


def test_at_the_sample_itself_its_attack_has_no_gradient(step_of):
    step = step_of(Trades(), teachers=())
    student = step.student.eval()
    x = step.x.requires_grad_()
    (gradient,) = torch.autograd.grad(kl_per_sample(student(x).detach(), student(x)).sum(), x)
    assert gradient.abs().max() < 1e-6


def test_so_a_start_at_the_sample_is_refused():
    with pytest.raises(ValidationError, match="leaves this attack without a gradient"):
        Trades(attack=Attack(start="none"))


def test_its_own_start_moves_the_sample_and_raises_the_divergence(step_of):
    objective = Trades(attack=Attack(epsilon=0.1, steps=1))
    step = step_of(objective, teachers=())
    with torch.no_grad():
        prediction = step.student.eval()(step.x)
    x_adv = objective.worst_case(step, lambda logits: kl_per_sample(prediction, logits))
    assert not torch.equal(x_adv, step.x)
    assert (x_adv - step.x).abs().max() <= 0.1 + 1e-7
    with torch.no_grad():
        assert kl_per_sample(prediction, step.student(x_adv)).min() > 0


def test_within_a_vanishing_ball_it_is_cross_entropy(step_of):
    objective = Trades(attack=Attack(epsilon=1e-7, steps=1))
    step = step_of(objective, teachers=())
    expected = F.cross_entropy(copy.deepcopy(step.student)(step.x), step.labels)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-4)
