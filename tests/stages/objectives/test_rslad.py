import copy

import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.stages.folding import foldable_pairs
from kdpipe.stages.objectives.rslad import Rslad

ATTACK = Attack(epsilon=0.1, steps=4)


def batchmean(teacher, student):
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")


def restated(step, share):
    """The published loop in plain steps: eval-mode attack on KL with 0.001 noise, then two passes in training mode."""
    student = copy.deepcopy(step.student)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        target = step.teacher.module(step.x)
    student.eval()
    x_adv = (step.x + 0.001 * torch.randn(step.x.shape, generator=generator)).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(batchmean(target, student(x_adv)), x_adv)
        x_adv = (x_adv + 2.5 * 0.1 / 4 * gradient.sign()).clamp(step.x - 0.1, step.x + 0.1).clamp(0, 1)
    student.train()
    return share * batchmean(target, student(x_adv.detach())) + (1 - share) * batchmean(target, student(step.x))


def test_it_is_the_published_step_with_five_sixths_on_the_attacked_batch(step_of):
    objective = Rslad(attack=ATTACK)
    step = step_of(objective)
    expected = restated(step, 5 / 6)
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-5)  # the KL is summed in another order


def test_batchnorm_folded_in_the_attack_gives_the_same_step(step_of):
    objective = Rslad(attack=ATTACK)
    step, folded = step_of(objective), step_of(objective)
    folded.foldable = foldable_pairs(folded.student.eval(), folded.x)
    folded.student.train()
    assert len(folded.foldable) == 9
    assert objective.loss(folded).total.item() == pytest.approx(objective.loss(step).total.item(), rel=1e-3)  # signs of near-zero gradients may flip


def test_the_labels_are_not_looked_at(step_of):
    objective = Rslad(attack=ATTACK)
    permuted = step_of(objective, labels=torch.zeros(8, dtype=torch.int64))
    assert torch.equal(objective.loss(step_of(objective)).total, objective.loss(permuted).total)


def test_the_teacher_is_asked_once_about_the_clean_batch_alone(step_of):
    objective = Rslad(attack=ATTACK)
    step = step_of(objective)
    asked = []
    step.teacher.module.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
    objective.loss(step)
    assert len(asked) == 1
    assert torch.equal(asked[0], step.x)


def test_the_attack_follows_the_teacher_and_not_the_labels(step_of):
    objective = Rslad(attack=ATTACK)
    step = step_of(objective)
    ours = objective.worst_case(step, lambda logits: -logits[:, 0])
    same = maximise(step.x, lambda x: -step.student.eval()(x)[:, 0], objective.attack, torch.Generator().manual_seed(0))
    assert torch.equal(ours, same)
    assert objective.attack.start == "gaussian"


def test_both_passes_of_the_student_move_its_batchnorm_and_the_attack_moves_nothing(step_of):
    objective = Rslad(attack=ATTACK)
    step = step_of(objective)
    counters = [value for name, value in step.student.named_buffers() if name.endswith("num_batches_tracked")]
    before = [value.item() for value in counters]
    objective.loss(step)
    assert [value.item() for value in counters] == [value + 2 for value in before]
    assert all(module.training for module in step.student.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in step.student.parameters())


def test_teacher_and_its_statistics_stay_as_they_are(step_of):
    objective = Rslad(attack=ATTACK)
    step = step_of(objective)
    before = {name: value.clone() for name, value in step.teacher.module.state_dict().items()}
    for _ in range(3):
        objective.loss(step).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in step.teacher.module.state_dict().items())
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
    assert not step.targets.requires_grad
