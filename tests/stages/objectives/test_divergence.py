import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from kdpipe.stages.objectives.divergence import kl, kl_per_sample, widened

LOGITS = arrays(np.float64, (6, 4), elements=st.floats(-8, 8))


@given(LOGITS, LOGITS, st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=30, deadline=None)
def test_it_is_scipys_relative_entropy_in_nats(teacher, student, temperature):
    expected = entropy(softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1), axis=1)
    got = kl_per_sample(torch.from_numpy(teacher), torch.from_numpy(student), temperature)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_twice_the_batch_and_classes_without_mass_change_nothing():
    teacher, student = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    value = kl(teacher, student)
    assert kl(teacher.repeat(2, 1), student.repeat(2, 1)).item() == pytest.approx(value.item(), rel=1e-6)
    empty = torch.full((8, 3), -1e4)
    assert kl(torch.cat([teacher, empty], 1), torch.cat([student, empty], 1)).item() == pytest.approx(value.item(), rel=1e-6)


def test_its_direction_is_from_teacher_to_student():
    labels = torch.arange(4)
    sure = torch.full((4, 4), -40.0)
    sure[labels, labels] = 40.0
    student = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert kl(sure, student).item() == pytest.approx(torch.nn.functional.cross_entropy(student, labels).item(), abs=1e-4)


def test_equal_logits_give_zero_and_no_gradient():
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    student = (teacher + 3.0).requires_grad_()  # a shift of all logits is no difference
    value = kl(teacher, student)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_half_precision_is_widened_and_double_kept():
    assert widened(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert widened(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


def test_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    student = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: kl(teacher, s, 2.0), student)
