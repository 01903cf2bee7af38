import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from scipy.special import softmax
from scipy.stats import entropy

from kdpipe.stages.objectives.correction import Correction, trust
from kdpipe.stages.objectives.kd import Kd

LABELS = torch.tensor([0, 3, 1, 2, 0])
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-5, 5))


def logits(seed, classes=4):
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


@given(LOGITS, LOGITS, st.floats(0.5, 8), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_each_samples_label_counts_as_much_as_the_teacher_believes_it(student, teacher, temperature, share):
    expected = []
    for s, t, y in zip(student, teacher, LABELS.tolist(), strict=True):
        weight = share * softmax(t)[y]
        divergence = entropy(softmax(t / temperature), softmax(s / temperature))
        expected.append((1 - weight) * temperature**2 * divergence - weight * np.log(softmax(s)[y]))
    objective = Correction(temperature=temperature, label_share=share)
    value = objective.logit_loss(torch.from_numpy(student), torch.from_numpy(teacher), LABELS, 0.0).total
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-6, abs=1e-9)


def test_a_teacher_sure_of_all_labels_leaves_kd_and_one_sure_of_others_leaves_no_label():
    student = logits(0)
    sure, contrary = 50.0 * F.one_hot(LABELS, 4).double(), 50.0 * F.one_hot((LABELS + 1) % 4, 4).double()
    for rule in ("weight", "drop"):
        objective = Correction(rule=rule, label_share=0.3)
        agreed = Kd(label_share=0.3).logit_loss(student, sure, LABELS, 0.0).total.item()
        assert objective.logit_loss(student, sure, LABELS, 0.0).total.item() == pytest.approx(agreed)
        corrected = [objective.logit_loss(student, contrary, labels, 0.0).total.item() for labels in (LABELS, (LABELS + 2) % 4)]
        assert corrected == pytest.approx([Kd(label_share=0).logit_loss(student, contrary, LABELS, 0.0).total.item()] * 2)


def test_the_rule_drop_takes_a_label_away_only_where_the_teacher_is_sure_of_another_class():
    p = torch.tensor([[0.95, 0.03, 0.02], [0.89, 0.06, 0.05], [0.95, 0.03, 0.02], [0.4, 0.35, 0.25]])
    labels = torch.tensor([1, 1, 0, 1])
    assert trust(p.log(), labels, "drop", 0.9).tolist() == [0, 1, 1, 1]
    assert trust(p.log(), labels, "drop", 0.3).tolist() == [0, 0, 1, 0]
    assert trust(p.log(), labels, "weight", 0.9).tolist() == pytest.approx([0.03, 0.06, 0.95, 0.35])


def test_a_student_like_its_teacher_has_no_loss_from_it():
    loss = Correction(label_share=0).logit_loss(logits(1) + 3.0, logits(1), LABELS, 0.0)
    assert loss.total.item() == pytest.approx(0, abs=1e-12)


def test_its_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone():
    teacher = logits(1).requires_grad_()
    for rule in ("weight", "drop"):
        assert torch.autograd.gradcheck(lambda s, rule=rule: Correction(rule=rule).logit_loss(s, logits(1), LABELS, 0.0).total, logits(0).requires_grad_())
    Correction().logit_loss(logits(0).requires_grad_(), teacher, LABELS, 0.0).total.backward()
    assert teacher.grad is None


def test_twice_the_batch_and_classes_without_mass_change_nothing():
    student, teacher, objective = logits(0), logits(1), Correction()
    empty = torch.full((5, 2), -1e4, dtype=torch.float64)
    value = objective.logit_loss(student, teacher, LABELS, 0.0).total.item()
    assert objective.logit_loss(student.repeat(2, 1), teacher.repeat(2, 1), LABELS.repeat(2), 0.0).total.item() == pytest.approx(value)
    assert objective.logit_loss(torch.cat([student, empty], 1), torch.cat([teacher, empty], 1), LABELS, 0.0).total.item() == pytest.approx(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
@pytest.mark.parametrize("label", [0, 1], ids=["sure of the label", "sure of another"])
@pytest.mark.parametrize("rule", ["weight", "drop"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_one_sample(dtype, scale, label, rule):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    loss = Correction(rule=rule).logit_loss(student, -student.detach(), torch.tensor([label]), 1.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(student.grad).all()
    assert loss.total.dtype == torch.float32


def test_the_log_tells_the_mean_trust():
    teacher = logits(1)
    expected = F.softmax(teacher, 1).gather(1, LABELS[:, None]).mean().item()
    assert Correction().logit_loss(logits(0), teacher, LABELS, 0.0).terms["trust"].item() == pytest.approx(expected)


@pytest.mark.parametrize("keys", [{"threshold": 1}, {"rule": "relabel"}, {"label_share": 1.5}, {"temperature": 0}], ids=str)
def test_settings_out_of_range_are_refused(keys):
    with pytest.raises(ValidationError):
        Correction.model_validate(keys)
