import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.sce import LOG_ZERO, Sce, reverse_cross_entropy

LABELS = torch.tensor([0, 3, 1, 2, 0])


def logits(seed, classes=4):
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


@given(arrays(np.float64, (5, 4), elements=st.floats(-5, 5)))
@settings(max_examples=30, deadline=None)
def test_the_reverse_term_is_the_cross_entropy_with_the_roles_exchanged(student):
    one_hot = np.clip(np.eye(4)[LABELS.numpy()], 1e-4, 1)
    expected = -(softmax(student, axis=1) * np.log(one_hot)).sum(1)
    assert reverse_cross_entropy(torch.from_numpy(student), LABELS).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_reverse_term_is_a_multiple_of_the_mean_absolute_error():
    absolute_error = (F.softmax(logits(0), 1) - F.one_hot(LABELS, 4)).abs().sum(1)
    assert reverse_cross_entropy(logits(0), LABELS).numpy() == pytest.approx(LOG_ZERO / 2 * absolute_error.numpy())


def test_its_value_is_the_weighted_sum_and_without_the_reverse_term_it_is_cross_entropy():
    student = logits(0)
    forward, backward = F.cross_entropy(student, LABELS).item(), reverse_cross_entropy(student, LABELS).mean().item()
    assert Sce().logit_loss(student, None, LABELS, 0.0).total.item() == pytest.approx(0.1 * forward + backward)
    assert Sce(label_weight=1, reverse_weight=0).logit_loss(student, None, LABELS, 0.0).total.item() == pytest.approx(forward)
    scheduled = Sce(label_weight={"from": 1, "to": 0}, reverse_weight=2)
    assert scheduled.logit_loss(student, None, LABELS, 0.75).total.item() == pytest.approx(0.25 * forward + 2 * backward)


def test_the_teachers_share_stands_beside_it():
    student, teacher = logits(0), logits(1)
    both = Sce(teacher_share=0.4, temperature=3.0)
    expected = 0.6 * Sce().logit_loss(student, None, LABELS, 0.0).total + 0.4 * kd_loss(student, teacher, 3.0)
    assert both.logit_loss(student, teacher, LABELS, 0.0).total.item() == pytest.approx(expected.item())


def test_its_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda s: Sce().logit_loss(s, None, LABELS, 0.0).total, logits(0).requires_grad_())


def test_twice_the_batch_a_shift_and_classes_without_mass_change_nothing():
    student, objective = logits(0), Sce()
    value = objective.logit_loss(student, None, LABELS, 0.0).total.item()
    others = [student + 7, torch.cat([student, torch.full((5, 2), -1e4, dtype=torch.float64)], 1)]
    assert [objective.logit_loss(s, None, LABELS, 0.0).total.item() for s in others] == pytest.approx([value, value])
    assert objective.logit_loss(student.repeat(2, 1), None, LABELS.repeat(2), 0.0).total.item() == pytest.approx(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
@pytest.mark.parametrize("label", [0, 1], ids=["sure of the label", "sure of another"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale, label):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    loss = Sce().logit_loss(student, None, torch.tensor([label]), 0.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(student.grad).all()
    assert loss.total.dtype == torch.float32
