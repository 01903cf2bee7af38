import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from kdpipe.stages.objectives.divergence import kl
from kdpipe.stages.objectives.dkd import Dkd, other_kl, target_kl

LABELS = torch.tensor([0, 3, 1, 2, 0])
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-5, 5))


def logits(seed, classes=4):
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


@given(LOGITS, LOGITS, st.floats(0.5, 10))
@settings(max_examples=30, deadline=None)
def test_both_parts_are_scipys_divergences_of_the_split_distribution(student, teacher, temperature):
    target, others = [], []
    for s, t, y in zip(student, teacher, LABELS.tolist(), strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        target.append(entropy([p[y], 1 - p[y]], [q[y], 1 - q[y]]))
        others.append(entropy(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])))
    s, t = torch.from_numpy(student), torch.from_numpy(teacher)
    assert target_kl(s, t, LABELS, temperature).item() == pytest.approx(np.mean(target), rel=1e-6, abs=1e-9)
    assert other_kl(s, t, LABELS, temperature).item() == pytest.approx(np.mean(others), rel=1e-6, abs=1e-9)


@given(LOGITS, LOGITS)
@settings(max_examples=30, deadline=None)
def test_plain_distillation_is_both_parts_with_the_teachers_doubt_on_the_second(student, teacher):
    s, t = torch.from_numpy(student), torch.from_numpy(teacher)
    whole = 0.0
    for row in range(5):
        one = slice(row, row + 1)
        doubt = 1 - F.softmax(t[one], dim=1)[0, LABELS[row]]
        whole += (target_kl(s[one], t[one], LABELS[one]) + doubt * other_kl(s[one], t[one], LABELS[one])).item()
    assert kl(t, s).item() == pytest.approx(whole / 5, rel=1e-6, abs=1e-9)


def test_its_value_is_the_weighted_sum_after_the_rise_and_the_labels_alone_at_the_start():
    student, teacher = logits(0), logits(1)
    objective = Dkd(temperature=2.0, target_weight=0.5, other_weight=3.0, rise=0.25)
    ce = F.cross_entropy(student, LABELS).item()
    soft = 4 * (0.5 * target_kl(student, teacher, LABELS, 2.0) + 3.0 * other_kl(student, teacher, LABELS, 2.0)).item()
    for progress, share in ((0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (1.0, 1.0)):
        assert objective.logit_loss(student, teacher, LABELS, progress).total.item() == pytest.approx(ce + share * soft)
    assert Dkd(temperature=2.0, target_weight=0.5, other_weight=3.0, rise=0).logit_loss(student, teacher, LABELS, 0.0).total.item() == pytest.approx(ce + soft)


def test_twice_the_batch_and_classes_without_mass_change_nothing():
    student, teacher = logits(0), logits(1)
    empty = torch.full((5, 2), -1e4, dtype=torch.float64)
    for part in (target_kl, other_kl):
        value = part(student, teacher, LABELS).item()
        assert part(student.repeat(2, 1), teacher.repeat(2, 1), LABELS.repeat(2)).item() == pytest.approx(value, rel=1e-9)
        assert part(torch.cat([student, empty], 1), torch.cat([teacher, empty], 1), LABELS).item() == pytest.approx(value, rel=1e-9)


def test_of_two_classes_the_label_says_all():
    student, teacher, labels = logits(0, 2), logits(1, 2), LABELS % 2
    assert other_kl(student, teacher, labels).item() == 0
    assert target_kl(student, teacher, labels).item() == pytest.approx(kl(teacher, student).item())


def test_a_student_like_its_teacher_has_neither_loss_nor_gradient_from_it():
    student = (logits(1) + 3.0).requires_grad_()
    Dkd(label_weight=0).logit_loss(student, logits(1), LABELS, 1.0).total.backward()
    assert student.grad.abs().max() < 1e-12


def test_its_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone():
    teacher = logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: Dkd().logit_loss(s, teacher.detach(), LABELS, 1.0).total, logits(0).requires_grad_())
    Dkd().logit_loss(logits(0).requires_grad_(), teacher, LABELS, 1.0).total.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
@pytest.mark.parametrize("label", [0, 1], ids=["sure of the label", "sure of another"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale, label):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    loss = Dkd(temperature=1.0).logit_loss(student, -student.detach(), torch.tensor([label]), 1.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(student.grad).all()
    assert loss.total.dtype == torch.float32
