import copy

import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.at import At
from kdpipe.stages.objectives.plain import Plain


def test_it_is_cross_entropy_on_the_attacked_batch(step_of):
    objective = At(attack=Attack(epsilon=0.1, steps=3))
    step = step_of(objective)
    student = copy.deepcopy(step.student).eval()
    generator = torch.Generator().manual_seed(0)
    x_adv = (step.x + (2 * torch.rand(step.x.shape, generator=generator) - 1) * 0.1).clamp(0, 1)
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(student(x_adv), step.labels, reduction="sum"), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 3 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    expected = F.cross_entropy(student.train()(x_adv.detach()), step.labels)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_within_a_vanishing_ball_it_is_plain_training(step_of):
    objective = At(attack=Attack(epsilon=1e-7, steps=1))
    plain = Plain().loss(step_of(Plain(), teachers=())).total
    assert objective.loss(step_of(objective, teachers=())).total.item() == pytest.approx(plain.item(), rel=1e-4)
    assert objective.attack.start == "uniform"
