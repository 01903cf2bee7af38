import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.augmix import Augmix, jensen_shannon
from kdpipe.stages.objectives.augmix_plain import AugmixPlain
from kdpipe.stages.objectives.kd import Kd
from kdpipe.tasks.augmentations.augmix import augmix


def random_logits(seed, count=3, samples=5, classes=4, scale=3.0):
    return torch.randn(count, samples, classes, generator=torch.Generator().manual_seed(seed)) * scale


def restated(*logits):
    """Sample by sample in float64, straight from the definition."""
    values = []
    for rows in zip(*(one.double().numpy() for one in logits), strict=True):
        p = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in rows]
        mean = np.clip(sum(p) / len(p), 1e-7, 1)
        values.append(np.mean([sum(v * math.log(v / m) for v, m in zip(one, mean, strict=True) if v > 0) for one in p]))
    return float(np.mean(values))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 30), classes=st.integers(2, 6))
def test_the_divergence_is_the_definitions_in_any_order_and_bounded(seed, scale, classes):
    a, b, c = random_logits(seed, scale=scale, classes=classes)
    value = jensen_shannon(a, b, c).item()
    assert value == pytest.approx(restated(a, b, c), abs=1e-5)  # float32 against float64
    assert value == pytest.approx(jensen_shannon(c, a, b).item(), abs=1e-6)
    assert -1e-6 <= value <= math.log(3) + 1e-5


def test_equal_predictions_do_not_diverge_and_a_batch_twice_is_the_batch():
    a, b, c = random_logits(1)
    assert jensen_shannon(a, a, a).item() == pytest.approx(0, abs=1e-6)
    twice = jensen_shannon(*(one.repeat(2, 1) for one in (a, b, c)))
    assert twice.item() == pytest.approx(jensen_shannon(a, b, c).item(), abs=1e-6)


def test_three_certain_and_different_predictions_diverge_by_ln_3():
    logits = 100 * torch.eye(3)[:, None, :]
    assert jensen_shannon(*logits).item() == pytest.approx(math.log(3), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_huge_logits_give_a_finite_value_and_gradient(dtype):
    logits = [(random_logits(seed, count=1)[0] * 1e3).to(dtype).requires_grad_() for seed in range(3)]
    value = jensen_shannon(*logits)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert all(torch.isfinite(one.grad).all() for one in logits)


def test_its_gradient_is_that_of_finite_differences():
    logits = [one.double().requires_grad_() for one in random_logits(2)]
    assert torch.autograd.gradcheck(jensen_shannon, logits)


@pytest.mark.parametrize("kind", [Augmix, AugmixPlain])
def test_the_views_are_made_of_the_batch_and_answered_in_one_pass(kind, step_of):
    objective = kind()
    step = step_of(objective)
    seen = []
    step.student.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    objective.loss(step)
    draws = torch.Generator().manual_seed(0)
    assert torch.equal(torch.cat(seen), torch.cat([step.x, augmix(step.x, draws), augmix(step.x, draws)]))
    assert len(seen) == 1


def test_the_teacher_is_asked_about_the_batch_alone_and_gets_no_gradient(step_of):
    step = step_of(Augmix())
    seen = []
    step.teacher.module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    Augmix().loss(step).total.backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], step.x)
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())


def test_its_value_is_kd_on_the_batch_and_the_weighted_divergence(step_of):
    objective = Augmix(temperature=2, label_share=0.3, consistency=5)
    step, twin = step_of(objective), step_of(objective)
    draws = torch.Generator().manual_seed(0)
    clean, one, other = twin.student(torch.cat([twin.x, augmix(twin.x, draws), augmix(twin.x, draws)])).chunk(3)
    expected = Kd(temperature=2, label_share=0.3).logit_loss(clean, twin.targets, twin.labels, 0.0).total + 5 * restated(
        clean.detach(), one.detach(), other.detach()
    )
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_a_teacher_it_is_cross_entropy_and_the_divergence_at_weight_12(step_of):
    loss = AugmixPlain().loss(step_of(AugmixPlain(), teachers=()))
    assert set(loss.terms) == {"labels", "consistency"}
    assert loss.total.item() == pytest.approx((loss.terms["labels"] + 12 * loss.terms["consistency"]).item(), rel=1e-6)


def test_equal_generators_give_equal_losses_and_others_other_ones(step_of):
    values = [Augmix().loss(step_of(Augmix(), seed=seed)).total.item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_rows_that_are_no_images_are_refused(step_of):
    with pytest.raises(ConfigError) as caught:
        Augmix().loss(step_of(Augmix(), x=torch.rand(8, 5)))
    problem = caught.value.problems[0]
    assert "augmix needs images (batch, channels, height, width), these samples are (8, 5)" in problem.message
    assert problem.at == "objective"
    assert "kd" in problem.do


@pytest.mark.parametrize("keys", [{"severity": 0}, {"severity": 11}, {"width": 0}, {"depth": 0}, {"consistency": -1}], ids=str)
def test_keys_outside_their_range_are_refused(keys):
    with pytest.raises(ValidationError, match=next(iter(keys))):
        Augmix(**keys)
