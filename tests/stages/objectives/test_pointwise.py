import pytest
import torch
import torch.nn.functional as F

from kdpipe.stages.objectives.pointwise import Pointwise, centred

LABELS = torch.tensor([0, 3, 1, 2])


def logits(seed):
    return torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_mean_squared_difference_of_centred_logits_beside_the_labels():
    student, teacher = logits(0), logits(1)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum(((b - sum(t) / 4) - (a - sum(s) / 4)) ** 2 for a, b in zip(s, t, strict=True))
    expected = 0.7 * total / 16 + 0.3 * F.cross_entropy(student, LABELS).item()
    assert Pointwise(label_share=0.3).logit_loss(student, teacher, LABELS, 0.0).total.item() == pytest.approx(expected)


def test_a_shift_of_all_logits_is_no_difference():
    student = logits(0)
    assert Pointwise(label_share=0).logit_loss(student, student + 7.0, LABELS, 0.0).total.item() == pytest.approx(0, abs=1e-12)
    assert centred(student).mean(1).abs().max() < 1e-12


def test_its_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone():
    teacher = logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: Pointwise().logit_loss(s, teacher.detach(), LABELS, 0.0).total, logits(0).requires_grad_())
    Pointwise().logit_loss(logits(0).requires_grad_(), teacher, LABELS, 0.0).total.backward()
    assert teacher.grad is None
