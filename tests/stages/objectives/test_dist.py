import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import pearsonr

from kdpipe.stages.objectives.dist import Dist, inter_distance, intra_distance, pearson_distance

LABELS = torch.tensor([0, 3, 1, 2, 0])
SEEDS = st.integers(0, 10_000)


def logits(seed):
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


@given(SEEDS, st.floats(0.5, 4))
@settings(max_examples=30, deadline=None)
def test_both_distances_are_one_minus_scipys_correlation_of_rows_and_of_columns(seed, temperature):
    s, t = logits(seed), logits(seed + 1)
    p, q = softmax(t.numpy() / temperature, axis=1), softmax(s.numpy() / temperature, axis=1)
    inter = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)])
    assert inter_distance(s, t, temperature).item() == pytest.approx(inter, abs=1e-4)  # 1e-8 is added under the fraction
    assert intra_distance(s, t, temperature).item() == pytest.approx(intra, abs=1e-4)


@given(SEEDS, arrays(np.float64, (5, 1), elements=st.floats(0.1, 9)), arrays(np.float64, (5, 1), elements=st.floats(-9, 9)))
@settings(max_examples=30, deadline=None)
def test_each_row_may_be_stretched_and_shifted_without_a_difference(seed, factor, shift):
    s, t = logits(seed), logits(seed + 1)
    moved = s * torch.from_numpy(factor) + torch.from_numpy(shift)
    assert pearson_distance(moved, t).item() == pytest.approx(pearson_distance(s, t).item(), abs=1e-4)
    assert pearson_distance(moved, s).item() == pytest.approx(0, abs=1e-4)


def test_a_sharper_student_of_the_same_opinion_is_near_and_one_of_the_contrary_far():
    teacher = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    assert pearson_distance(2 * teacher - 0.1, teacher).item() == pytest.approx(0, abs=1e-6)
    assert pearson_distance(-teacher, teacher).item() == pytest.approx(2, abs=1e-6)


def test_its_value_is_the_weighted_sum():
    student, teacher = logits(0), logits(1)
    expected = 0.5 * F.cross_entropy(student, LABELS) + 2 * inter_distance(student, teacher, 4.0) + 3 * intra_distance(student, teacher, 4.0)
    objective = Dist(temperature=4.0, label_weight=0.5, inter_weight=2, intra_weight=3)
    assert objective.logit_loss(student, teacher, LABELS, 0.0).total.item() == pytest.approx(expected.item())


def test_the_gradient_does_not_vanish_as_the_temperature_grows():
    sizes = []
    for temperature in (10.0, 100.0):
        student = logits(0).requires_grad_()
        inter_distance(student, logits(1), temperature).backward()
        sizes.append(student.grad.norm().item())
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_its_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone():
    teacher = logits(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: Dist().logit_loss(s, teacher.detach(), LABELS, 0.0).total, logits(0).requires_grad_())
    Dist().logit_loss(logits(0).requires_grad_(), teacher, LABELS, 0.0).total.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
@pytest.mark.parametrize("samples", [1, 3])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale, samples):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).repeat(samples, 1).to(dtype).requires_grad_()
    loss = Dist().logit_loss(student, -student.detach(), torch.ones(samples, dtype=torch.int64), 0.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(student.grad).all()
    assert loss.total.dtype == torch.float32


def test_samples_that_do_not_differ_say_nothing_of_the_batch():
    assert intra_distance(logits(0)[:1], logits(1)[:1]).item() == pytest.approx(1)
