import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy.special import softmax

from kdpipe.stages.objectives.gce import Gce, generalised_cross_entropy
from kdpipe.stages.objectives.kd import kd_loss

LABELS = torch.tensor([0, 3, 1, 2, 0])
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-5, 5))


def logits(seed, classes=4):
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


@given(LOGITS, st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_it_is_the_papers_formula(student, q):
    p = softmax(student, axis=1)[np.arange(5), LABELS.numpy()]
    assert generalised_cross_entropy(torch.from_numpy(student), LABELS, q).numpy() == pytest.approx((1 - p**q) / q, rel=1e-9, abs=1e-12)


def test_at_its_ends_it_is_cross_entropy_and_half_of_the_mean_absolute_error():
    student = logits(0)
    cross_entropy = F.cross_entropy(student, LABELS, reduction="none")
    absolute_error = (F.softmax(student, 1) - F.one_hot(LABELS, 4)).abs().sum(1)
    assert torch.equal(generalised_cross_entropy(student, LABELS, 0), cross_entropy)
    assert generalised_cross_entropy(student, LABELS, 1e-6).numpy() == pytest.approx(cross_entropy.numpy(), rel=1e-5)
    assert generalised_cross_entropy(student, LABELS, 1).numpy() == pytest.approx(absolute_error.numpy() / 2)


def test_at_q_1_the_sum_over_all_labels_is_the_same_whatever_is_predicted():
    sums = [sum(generalised_cross_entropy(logits(seed), torch.full((5,), label), 1) for label in range(4)) for seed in (0, 1)]
    assert sums[0].numpy() == pytest.approx(np.full(5, 3.0))  # what makes it withstand symmetric noise
    assert sums[1].numpy() == pytest.approx(np.full(5, 3.0))


def test_its_gradient_is_that_of_cross_entropy_times_the_labels_probability_to_the_q():
    student = logits(0).requires_grad_()
    (gradient,) = torch.autograd.grad(generalised_cross_entropy(student, LABELS, 0.7).sum(), student)
    (plain,) = torch.autograd.grad(F.cross_entropy(student, LABELS, reduction="sum"), student)
    p = F.softmax(student.detach(), 1).gather(1, LABELS[:, None])
    assert torch.allclose(gradient, plain * p**0.7)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0])
def test_its_gradient_is_that_of_finite_differences(q):
    assert torch.autograd.gradcheck(lambda s: generalised_cross_entropy(s, LABELS, q), logits(0).requires_grad_())


def test_truncated_labels_teach_nothing_but_only_after_the_start():
    objective = Gce(q=0.7, truncation=0.5, truncate_from=0.25)
    student = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)  # p of the label: 0.79, 0.33
    labels = torch.tensor([0, 1])
    early, late = (objective.logit_loss(student, None, labels, progress).total for progress in (0.2, 0.25))
    assert early.item() == pytest.approx(Gce(q=0.7).logit_loss(student, None, labels, 0.2).total.item())
    late.backward()
    assert student.grad[0].abs().min() > 0
    assert (student.grad[1] == 0).all()
    believed = generalised_cross_entropy(student[:1], labels[:1], 0.7).item()
    assert late.item() == pytest.approx((believed + (1 - 0.5**0.7) / 0.7) / 2)


def test_twice_the_batch_a_shift_and_classes_without_mass_change_nothing():
    student, objective = logits(0), Gce()
    value = objective.logit_loss(student, None, LABELS, 0.0).total.item()
    others = [student + 7, torch.cat([student, torch.full((5, 2), -1e4, dtype=torch.float64)], 1)]
    assert [objective.logit_loss(s, None, LABELS, 0.0).total.item() for s in others] == pytest.approx([value, value])
    assert objective.logit_loss(student.repeat(2, 1), None, LABELS.repeat(2), 0.0).total.item() == pytest.approx(value)


def test_the_teachers_share_stands_beside_it_and_asks_for_a_teacher():
    student, teacher = logits(0), logits(1)
    both = Gce(teacher_share=0.3, temperature=2.0)
    expected = 0.7 * Gce().logit_loss(student, None, LABELS, 0.0).total + 0.3 * kd_loss(student, teacher, 2.0)
    assert both.logit_loss(student, teacher, LABELS, 0.0).total.item() == pytest.approx(expected.item())
    assert both.uses_teacher
    assert Gce(teacher_share={"from": 0, "to": 0.5}).uses_teacher
    assert not Gce().uses_teacher


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
@pytest.mark.parametrize("label", [0, 1], ids=["sure of the label", "sure of another"])
@pytest.mark.parametrize("q", [1e-3, 0.7, 1.0])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale, label, q):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    loss = Gce(q=q, truncation=0.5).logit_loss(student, None, torch.tensor([label]), 0.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert loss.total.item() <= 1 / q + 1e-6
    assert torch.isfinite(student.grad).all()
    assert loss.total.dtype == torch.float32


@pytest.mark.parametrize("keys", [{"q": 0}, {"q": 1.1}, {"truncation": 1}, {"truncate_from": -0.1}, {"teacher_share": 2}], ids=str)
def test_settings_out_of_range_are_refused(keys):
    with pytest.raises(ValidationError):
        Gce.model_validate(keys)


def test_a_worked_example():
    assert Gce(q=0.5).logit_loss(torch.tensor([[math.log(3.0), 0.0]]), None, torch.tensor([0]), 0.0).total.item() == pytest.approx(2 - math.sqrt(3))  # p = 3/4
