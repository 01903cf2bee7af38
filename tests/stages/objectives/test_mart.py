import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.mart import Mart, boosted_cross_entropy, doubtful_kl

ATTACK = Attack(epsilon=0.1, steps=3)
LABELS = torch.tensor([0, 3, 1, 2, 0])
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-5, 5))


def logits(seed):
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


@given(LOGITS, LOGITS)
@settings(max_examples=30, deadline=None)
def test_both_parts_are_their_formulas_in_probabilities(clean, adversarial):
    boosted, doubtful = [], []
    for c, a, y in zip(softmax(clean, axis=1), softmax(adversarial, axis=1), LABELS.tolist(), strict=True):
        boosted.append(-np.log(a[y]) - np.log(1 - np.delete(a, y).max()))
        doubtful.append(entropy(c, a) * (1 - c[y]))
    c, a = torch.from_numpy(clean), torch.from_numpy(adversarial)
    assert boosted_cross_entropy(a, LABELS).item() == pytest.approx(np.mean(boosted))
    assert doubtful_kl(c, a, LABELS).item() == pytest.approx(np.mean(doubtful), abs=1e-9)


def restated(step, weight):
    """The published step, in probabilities with its small constants; the loss with its graph, and the student that it is of."""
    student = copy.deepcopy(step.student).eval()
    x_adv = (step.x + 0.001 * torch.randn(step.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(student(x_adv), step.labels), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 3 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    student.train()
    p, q = F.softmax(student(step.x), 1), F.softmax(student(x_adv.detach()), 1)
    rows = torch.arange(len(step.labels))
    rival = q.detach().clone()
    rival[rows, step.labels] = 0
    boosted = -torch.log(q[rows, step.labels]) - torch.log(1.0001 - q[rows, rival.argmax(1)])
    kl = (p * (torch.log(p) - torch.log(q))).sum(1)
    return (boosted + weight * kl * (1.0000001 - p[rows, step.labels])).mean(), student


def test_value_and_gradient_are_those_of_the_published_step(step_of):
    objective = Mart(attack=ATTACK)
    step = step_of(objective, teachers=())
    expected, student = restated(step, 5.0)
    loss = objective.loss(step).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)  # theirs has 1e-4 inside the logarithm
    loss.backward()
    expected.backward()
    for ours, theirs in zip(step.student.parameters(), student.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3)  # clean prediction and doubt carry a gradient, as theirs do


def test_twice_the_batch_changes_nothing_and_neither_do_classes_without_mass():
    clean, adversarial = logits(0), logits(1)
    empty = torch.full((5, 2), -1e4, dtype=torch.float64)
    for part in (lambda c, a, y: boosted_cross_entropy(a, y), doubtful_kl):
        value = part(clean, adversarial, LABELS).item()
        assert part(clean.repeat(2, 1), adversarial.repeat(2, 1), LABELS.repeat(2)).item() == pytest.approx(value)
        assert part(torch.cat([clean, empty], 1), torch.cat([adversarial, empty], 1), LABELS).item() == pytest.approx(value)


def test_of_two_classes_the_boosted_part_is_the_cross_entropy_twice():
    assert boosted_cross_entropy(logits(0)[:, :2], LABELS % 2).item() == pytest.approx(2 * F.cross_entropy(logits(0)[:, :2], LABELS % 2).item())


def test_its_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda a: boosted_cross_entropy(a, LABELS), logits(1).requires_grad_())
    assert torch.autograd.gradcheck(lambda c, a: doubtful_kl(c, a, LABELS), (logits(0).requires_grad_(), logits(1).requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
@pytest.mark.parametrize("label", [0, 1], ids=["right", "wrong"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale, label):
    adversarial = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    clean = (torch.tensor([[-1.0, 1.0, 0.0, 0.5]]) * scale).to(dtype).requires_grad_()
    labels = torch.tensor([label])
    total = boosted_cross_entropy(adversarial, labels) + doubtful_kl(clean, adversarial, labels)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(clean.grad).all()
    assert torch.isfinite(adversarial.grad).all()
    assert total.dtype == torch.float32


def test_within_a_vanishing_ball_only_the_boosted_cross_entropy_is_left(step_of):
    objective = Mart(attack=Attack(epsilon=1e-7, steps=1))
    step = step_of(objective, teachers=())
    expected = boosted_cross_entropy(copy.deepcopy(step.student)(step.x), step.labels)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-4)
