import copy

import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.folding import foldable_pairs
from kdpipe.stages.objectives.adaad import Adaad
from kdpipe.stages.objectives.divergence import kl_per_sample
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.objective import Teacher

ATTACK = Attack(epsilon=0.1, steps=4)


def batchmean(teacher, student):
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")


def attacked(step, *, through_teacher):
    """x' of the published loop: 0.001 noise, evaluation mode, KL of the teacher's own answer on x'."""
    student, teacher = copy.deepcopy(step.student).eval(), step.teacher.module
    x_adv = (step.x + 0.001 * torch.randn(step.x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        target = teacher(x_adv) if through_teacher else teacher(x_adv).detach()
        (gradient,) = torch.autograd.grad(batchmean(target, student(x_adv)), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 4 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    return x_adv.detach()


def restated(step, share):
    x_adv, student, teacher = attacked(step, through_teacher=True), copy.deepcopy(step.student), step.teacher.module
    with torch.no_grad():
        target, target_adv = teacher(step.x), teacher(x_adv)
    return share * batchmean(target_adv, student(x_adv)) + (1 - share) * batchmean(target, student(step.x))


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_it_is_the_published_step(share, step_of):
    objective = Adaad(attack=ATTACK, robust_share=share)
    step = step_of(objective)
    expected = restated(step, share)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-3)  # signs of near-zero gradients may flip


def test_the_attack_follows_the_gradient_through_the_teacher_too(step_of):
    objective = Adaad(attack=ATTACK)
    step = step_of(objective)
    ours = objective.worst_case_for(step, lambda x: kl_per_sample(step.teacher.module(x), step.student(x)))
    through, past = attacked(step, through_teacher=True), attacked(step, through_teacher=False)
    assert (ours != through).float().mean() < 0.02  # the KL is summed in another order: signs of near-zero gradients
    assert (ours != past).float().mean() > 0.1
    assert (ours - step.x).abs().max() <= 0.1 + 1e-7
    assert objective.attack.start == "gaussian"


def test_within_a_vanishing_ball_it_is_plain_distillation(step_of):
    objective = Adaad(attack=Attack(epsilon=1e-7, steps=1))
    plain = Kd(temperature=1, label_share=0).loss(step_of(Kd())).total
    assert objective.loss(step_of(objective)).total.item() == pytest.approx(plain.item(), rel=1e-4)


def test_the_labels_are_not_looked_at(step_of):
    objective = Adaad(attack=ATTACK)
    permuted = step_of(objective, labels=torch.zeros(8, dtype=torch.int64))
    assert torch.equal(objective.loss(step_of(objective)).total, objective.loss(permuted).total)


def test_the_teacher_stays_as_it_is_and_the_student_learns(step_of):
    objective = Adaad(attack=ATTACK)
    step = step_of(objective)
    before = {name: value.clone() for name, value in step.teacher.module.state_dict().items()}
    objective.loss(step).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in step.teacher.module.state_dict().items())
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
    assert all(parameter.grad is not None for parameter in step.student.parameters())


def test_it_makes_no_clean_pass_unless_asked(step_of):
    for share, passes in ((1.0, 1), (0.5, 2)):
        objective = Adaad(attack=ATTACK, robust_share=share)
        step = step_of(objective)
        counter = step.student.get_buffer("body.bn1.num_batches_tracked")
        before = counter.item()
        objective.loss(step)
        assert counter.item() == before + passes


def test_batchnorms_folded_in_the_attack_the_teachers_too_give_the_same_step(step_of):
    objective = Adaad(attack=ATTACK)
    step, folded = step_of(objective), step_of(objective)
    pairs = foldable_pairs(folded.teacher.module, folded.x)
    folded.teachers = (Teacher(folded.teacher.module, foldable=pairs),)
    folded.foldable = foldable_pairs(folded.student.eval(), folded.x)
    folded.student.train()
    assert len(pairs) == 9
    assert (objective.attacked(folded) != objective.attacked(step)).float().mean() < 0.02  # signs of near-zero gradients
    step, again = step_of(objective), step_of(objective)
    again.teachers = (Teacher(again.teacher.module, foldable=foldable_pairs(again.teacher.module, again.x)),)
    assert objective.loss(again).total.item() == pytest.approx(objective.loss(step).total.item(), rel=1e-3)


def test_the_teacher_is_folded_during_the_attack_alone(step_of):
    objective = Adaad(attack=ATTACK)
    step = step_of(objective)
    norm, ran = step.teacher.module.body.bn1, []
    norm.register_forward_hook(lambda *_: ran.append("forward" in norm.__dict__))
    step.teachers = (Teacher(step.teacher.module, foldable=foldable_pairs(step.teacher.module, step.x)),)
    ran.clear()
    objective.loss(step)
    assert ran == [True] * ATTACK.steps + [False]
