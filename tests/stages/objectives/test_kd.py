import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from kdpipe.stages.objectives.kd import Kd, kd_loss

LABELS = torch.tensor([0, 3, 1, 2, 0])
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-5, 5))


def logits(seed, spread=2.0):
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread


@given(LOGITS, LOGITS, st.floats(0.5, 20), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_it_is_scipys_divergence_and_cross_entropy_in_their_shares(student, teacher, temperature, share):
    soft = entropy(softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1), axis=1).mean() * temperature**2
    hard = -np.log(softmax(student, axis=1)[np.arange(5), LABELS.numpy()]).mean()
    loss = Kd(temperature=temperature, label_share=share).logit_loss(torch.from_numpy(student), torch.from_numpy(teacher), LABELS, 0.5)
    assert loss.total.item() == pytest.approx((1 - share) * soft + share * hard, rel=1e-6, abs=1e-9)
    assert loss.terms["teacher"].item() == pytest.approx(soft, rel=1e-6, abs=1e-9)


def test_the_gradient_keeps_its_size_as_the_temperature_grows():
    sizes = []
    for temperature in (4.0, 40.0):
        student = logits(0).requires_grad_()
        kd_loss(student, logits(1), temperature).backward()
        sizes.append(student.grad.norm().item())
    assert 0.5 < sizes[0] / sizes[1] < 2


def test_at_a_huge_temperature_it_regresses_centred_logits():
    student, teacher = logits(0), logits(1)
    difference = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    expected = difference.square().sum(1).mean() / (2 * 4)
    assert kd_loss(student, teacher, 1000.0).item() == pytest.approx(expected.item(), rel=0.01)


def test_no_gradient_reaches_the_teacher():
    teacher = logits(1).requires_grad_()
    kd_loss(logits(0).requires_grad_(), teacher, 4.0).backward()
    assert teacher.grad is None


def test_its_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda s: Kd().logit_loss(s, logits(1), LABELS, 0.0).total, logits(0).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    loss = Kd().logit_loss(student, -student.detach(), torch.tensor([1]), 0.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(student.grad).all()
    assert loss.total.dtype == torch.float32


def test_temperature_and_share_follow_their_schedules():
    objective = Kd.model_validate({"temperature": {"from": 8, "to": 2}, "label_share": {"from": 0, "to": 1, "shape": "cosine"}})
    student, teacher = logits(0), logits(1)
    assert objective.logit_loss(student, teacher, LABELS, 0.0).total.item() == pytest.approx(kd_loss(student, teacher, 8.0).item())
    assert objective.logit_loss(student, teacher, LABELS, 1.0).total.item() == pytest.approx(F.cross_entropy(student, LABELS).item())
    assert objective.logit_loss(student, teacher, LABELS, 0.5).terms["teacher"].item() == pytest.approx(kd_loss(student, teacher, 5.0).item())
