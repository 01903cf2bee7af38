import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.ard import Ard
from kdpipe.stages.objectives.iad import Iad, reliability

ATTACK = Attack(epsilon=0.1, steps=3)


def rowwise(first, second):
    return (F.softmax(first, 1) * (F.log_softmax(first, 1) - F.log_softmax(second, 1))).sum(1)


def restated(step, power, full_teacher):
    """The paper's step in plain lines; the loss with its graph, and the student that it is of."""
    student, teacher = copy.deepcopy(step.student).eval(), step.teacher.module
    x_adv = (step.x + (2 * torch.rand(step.x.shape, generator=torch.Generator().manual_seed(0)) - 1) * 0.1).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(student(x_adv), step.labels, reduction="sum"), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 3 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    x_adv = x_adv.detach()
    with torch.no_grad():
        target = teacher(step.x)
        alpha = F.softmax(teacher(x_adv), 1)[torch.arange(len(step.labels)), step.labels] ** power
    student.train()
    adversarial, clean = student(x_adv), student(step.x)
    guided = rowwise(target, adversarial)
    return ((guided if full_teacher else alpha * guided) + (1 - alpha) * rowwise(clean, adversarial)).mean(), student


@pytest.mark.parametrize("full_teacher", [False, True], ids=["paper", "authors' code"])
def test_value_and_gradient_are_those_of_the_papers_step(full_teacher, step_of):
    objective = Iad(attack=ATTACK, reliability_power=0.5, full_teacher=full_teacher)
    step = step_of(objective, progress=0.5)
    expected, student = restated(step, 0.5, full_teacher)
    loss = objective.loss(step).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(step.student.parameters(), student.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)  # both sides of the student's own KL carry a gradient


def test_reliability_is_the_power_of_the_labels_probability():
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 2, 1, 1])
    expected = softmax(logits.detach().numpy(), axis=1)[np.arange(4), labels.numpy()] ** 0.3
    assert reliability(logits, labels, 0.3).numpy() == pytest.approx(expected)
    assert not reliability(logits, labels, 0.3).requires_grad
    assert reliability(torch.tensor([[1e3, -1e3]]), torch.tensor([1]), 0.1).item() == 0
    assert reliability(torch.tensor([[1e3, -1e3]]), torch.tensor([1]), 0).item() == 1


def test_before_trust_is_measured_and_with_power_0_it_is_ard(step_of):
    ard = Ard(attack=ATTACK, temperature=1)
    expected = ard.loss(step_of(ard)).total.item()
    early, all_believed = Iad(attack=ATTACK), Iad(attack=ATTACK, reliability_power=0)
    assert early.loss(step_of(early, progress=0.29)).total.item() == pytest.approx(expected, rel=1e-5)
    assert all_believed.loss(step_of(all_believed, progress=1.0)).total.item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_softens_with_its_square_before_it(step_of):
    objective = Iad(attack=ATTACK, temperature=3)
    ard = Ard(attack=ATTACK, temperature=3)
    assert objective.loss(step_of(objective)).terms["teacher"].item() == pytest.approx(ard.loss(step_of(ard)).total.item(), rel=1e-5)


def test_the_teacher_is_asked_about_attacked_samples_only_where_its_trust_is_measured(step_of):
    for progress, times in ((0.0, 1), (0.3, 2)):
        objective = Iad(attack=ATTACK)
        step = step_of(objective, progress=progress)
        asked = []
        step.teacher.module.register_forward_pre_hook(lambda module, inputs, asked=asked: asked.append(inputs[0]))
        loss = objective.loss(step)
        loss.total.backward()
        assert len(asked) == times
        assert (loss.terms["trust"].item() == 1) == (times == 1)
        assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
