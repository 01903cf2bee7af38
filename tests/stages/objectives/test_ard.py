import copy

import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.ard import Ard
from kdpipe.stages.objectives.kd import Kd

ATTACK = Attack(epsilon=0.1, steps=3)
STILL = Attack(epsilon=1e-7, steps=1)


def restated(step, temperature, share):
    """The paper's step in plain lines: attack on the cross-entropy from a uniform start, in evaluation mode; then both passes in training mode."""
    student = copy.deepcopy(step.student).eval()
    with torch.no_grad():
        target = step.teacher.module(step.x)
    x_adv = (step.x + (2 * torch.rand(step.x.shape, generator=torch.Generator().manual_seed(0)) - 1) * 0.1).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(student(x_adv), step.labels, reduction="sum"), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 3 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    student.train()
    soft = F.kl_div(F.log_softmax(student(x_adv.detach()) / temperature, 1), F.softmax(target / temperature, 1), reduction="batchmean")
    return (1 - share) * temperature**2 * soft + share * F.cross_entropy(student(step.x), step.labels)


@pytest.mark.parametrize(("temperature", "share"), [(30.0, 0.0), (2.0, 0.3)])
def test_it_is_the_papers_step(temperature, share, step_of):
    objective = Ard(attack=ATTACK, temperature=temperature, label_share=share)
    step = step_of(objective)
    expected = restated(step, temperature, share)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_within_a_vanishing_ball_it_is_plain_distillation(step_of):
    objective = Ard(attack=STILL, temperature=1)
    plain = Kd(temperature=1, label_share=0).loss(step_of(Kd())).total
    assert objective.loss(step_of(objective)).total.item() == pytest.approx(plain.item(), rel=1e-4)


def test_it_starts_anywhere_in_the_ball_and_makes_no_clean_pass_unless_asked(step_of):
    assert Ard().attack.start == "uniform"
    for share, passes in ((0.0, 1), (0.5, 2), ({"from": 0, "to": 1}, 2)):
        objective = Ard.model_validate({"attack": ATTACK, "label_share": share})
        step = step_of(objective)
        counter = step.student.get_buffer("body.bn1.num_batches_tracked")
        before = counter.item()
        terms = objective.loss(step).terms
        assert counter.item() == before + passes
        assert ("labels" in terms) == (passes == 2)


def test_the_teacher_is_asked_once_about_the_clean_batch_and_learns_nothing(step_of):
    objective = Ard(attack=ATTACK)
    step = step_of(objective)
    asked = []
    step.teacher.module.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
    objective.loss(step).total.backward()
    assert len(asked) == 1
    assert torch.equal(asked[0], step.x)
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
    assert all(parameter.grad is not None for parameter in step.student.parameters())
