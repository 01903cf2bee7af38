import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.mtard import Balance, Mtard
from kdpipe.stages.objectives.objective import Step, Teacher
from kdpipe.stages.weight_perturbation import perturbed

ATTACK = Attack(epsilon=0.1, steps=3)
NOWHERE = Attack(epsilon=1e-9, steps=1)


def settled(network, samples):
    """The network's module with BatchNorm statistics of the samples, frozen."""
    network.module.train()
    with torch.no_grad():
        for _ in range(10):
            network.module(samples)
    return network.module.eval().requires_grad_(False)


@pytest.fixture
def teachers(tiny, digits):
    """A robust and a natural one, by name only."""
    samples = torch.from_numpy(digits.train.read(np.arange(64)))
    return tuple(Teacher(settled(tiny(seed=seed, width=0.5), samples)) for seed in (1, 2))


def batchmean(teacher, student):
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")


def restated(step, natural_share):
    """The published step in plain lines; the loss with its graph, and the student that it is of."""
    student = copy.deepcopy(step.student).eval()
    robust, natural = (teacher.module for teacher in step.teachers)
    x_adv = (step.x + 0.001 * torch.randn(step.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(student(x_adv), step.labels, reduction="sum"), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 3 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    x_adv = x_adv.detach()
    student.train()
    with torch.no_grad():
        robust_target, natural_target = robust(x_adv), natural(step.x)
    return (1 - natural_share) * batchmean(robust_target, student(x_adv)) + natural_share * batchmean(natural_target, student(step.x)), student


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_value_and_gradient_are_those_of_the_papers_step(share, step_of, teachers):
    objective = Mtard(attack=ATTACK, natural_share=share)
    step = step_of(objective, teachers=teachers)
    expected, student = restated(step, share)
    loss = objective.loss(step).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(step.student.parameters(), student.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_with_equal_teachers_and_no_room_for_an_attack_it_is_plain_distillation(step_of, teachers):
    objective, kd = Mtard(attack=NOWHERE, natural_share=0.3), Kd(temperature=1, label_share=0)
    expected = kd.loss(step_of(kd, teachers=teachers[:1])).total.item()
    assert objective.loss(step_of(objective, teachers=teachers[:1] * 2)).total.item() == pytest.approx(expected, rel=1e-4)


def test_the_robust_teacher_sees_the_attacked_batch_alone_and_the_natural_one_the_clean_batch_alone(step_of, teachers):
    objective = Mtard(attack=ATTACK)
    step = step_of(objective, teachers=teachers)
    asked = {}
    for role, teacher in zip(objective.teacher_roles, teachers, strict=True):
        teacher.module.register_forward_pre_hook(lambda module, inputs, role=role: asked.setdefault(role, []).append(inputs[0]))
    objective.loss(step)
    (attacked,), (clean,) = asked["robust"], asked["natural"]
    assert torch.equal(clean, step.x)
    assert 0 < (attacked - step.x).abs().max() <= 0.1 + 1e-6


def test_teachers_stay_as_they_are_through_three_steps(step_of, teachers):
    objective = Mtard(attack=ATTACK)
    before = [{name: value.clone() for name, value in teacher.module.state_dict().items()} for teacher in teachers]
    for number in range(3):
        objective.loss(step_of(objective, teachers=teachers, epoch=number)).total.backward()
    for teacher, state in zip(teachers, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in teacher.module.state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.module.parameters())
        assert not any(module.training for module in teacher.module.modules())


def step_at(epoch, number):
    return Step(
        x=torch.empty(0), labels=torch.empty(0), indices=torch.empty(0), student=torch.nn.Identity(), generator=torch.Generator(), epoch=epoch, number=number
    )


def moved(balance, natural, adversarial, rate, epoch, number=0):
    return balance.moved_(torch.tensor(natural), torch.tensor(adversarial), rate, step_at(epoch, number)).item()


def test_the_balance_moves_to_what_is_learned_more_slowly_worked_by_hand():
    balance = Balance(0.5)
    assert moved(balance, 2.0, 1.0, 0.1, epoch=0) == 0.5
    assert moved(balance, 4.0, 3.0, 0.1, epoch=0, number=1) == 0.5  # means of the first epoch: 3 and 2
    # ratios 1.5 / 3 = 0.5 and 3 / 2 = 1.5: the goal is 0.25, and w goes a tenth of the way
    assert moved(balance, 1.5, 3.0, 0.1, epoch=1) == pytest.approx(0.5 + 0.1 * (0.25 - 0.5))
    assert moved(balance, 1.5, 3.0, 1.0, epoch=1, number=1) == pytest.approx(0.25)


def test_one_odd_first_batch_does_not_anchor_the_training():
    """The authors' code divides by the first batch's losses alone."""
    balance = Balance(0.5)
    moved(balance, 0.01, 2.0, 1.0, epoch=0)
    for number in range(1, 100):
        moved(balance, 2.0, 2.0, 1.0, epoch=0, number=number)
    assert moved(balance, 2.0, 2.0, 1.0, epoch=1) == pytest.approx(0.5, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=2, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_the_share_never_leaves_its_range(losses, start, rate):
    balance = Balance(start)
    for number, (natural, adversarial) in enumerate(losses):
        share = moved(balance, natural, adversarial, rate, epoch=min(1, number // 2), number=number)
        assert -1e-6 <= share <= 1 + 1e-6


def test_without_a_rate_the_share_stays(step_of, teachers):
    objective = Mtard(attack=ATTACK, natural_share=0.7, balance_rate=0)
    auxiliary = objective.auxiliary(None)
    for epoch in range(3):
        loss = objective.loss(step_of(objective, teachers=teachers, auxiliary=auxiliary, epoch=epoch))
        assert loss.terms["natural_share"].item() == pytest.approx(0.7)


def test_the_state_is_in_buffers_and_nothing_of_it_is_trained():
    balance = Mtard().auxiliary(None)
    assert sorted(balance.state_dict()) == ["share", "steps", "sums"]
    assert not list(balance.parameters())


def test_under_weight_perturbation_a_step_counts_once(step_of, teachers):
    objective = Mtard(attack=ATTACK)
    step = step_of(objective, teachers=teachers)
    x_adv = objective.attacked(step)
    with perturbed(step.student, lambda: objective.outer(step, x_adv).total, 0.01, remembering=step.auxiliary):
        objective.outer(step, x_adv)
    assert step.auxiliary.steps.item() == 1


@pytest.mark.parametrize("labels", [torch.zeros(8, dtype=torch.int64), torch.full((8,), 9)], ids=["all zeros", "all nines"])
def test_a_batch_of_one_class_is_a_batch_like_any_other(labels, step_of, teachers):
    objective = Mtard(attack=ATTACK)
    step = step_of(objective, teachers=teachers, labels=labels, epoch=1)
    loss = objective.loss(step).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in step.student.parameters())
