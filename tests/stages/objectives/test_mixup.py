import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy import stats

from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.mixup import Mixup, mixed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_sample_is_mixed_with_its_partner_by_one_share():
    x = torch.rand(16, 1, 4, 4, generator=generator(3))
    before = x.clone()
    mixture, partners, share = mixed(x, 1.0, generator())
    assert sorted(partners.tolist()) == list(range(16))
    for sample, own, partner in zip(mixture, x, partners, strict=True):
        torch.testing.assert_close(sample, share * own + (1 - share) * x[partner])
    assert 0 <= share <= 1
    assert mixture.min() >= 0
    assert mixture.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_beta_distributed(alpha):
    draws = generator()
    shares = [mixed(torch.zeros(2, 1), alpha, draws)[2] for _ in range(500)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_the_teacher_and_the_student_see_the_same_mixture(step_of):
    step = step_of(Mixup())
    seen = {}
    for name, module in (("student", step.student), ("teacher", step.teacher.module)):
        module.register_forward_pre_hook(lambda m, inputs, name=name: seen.setdefault(name, []).append(inputs[0].clone()))
    Mixup().loss(step).total.backward()
    mixture, _, _ = mixed(step.x, 1.0, generator())
    assert torch.equal(seen["student"][0], mixture)
    assert torch.equal(seen["teacher"][0], mixture)
    assert [len(seen[name]) for name in ("student", "teacher")] == [1, 1]
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())


def test_its_value_is_kd_on_the_mixture_and_the_cross_entropy_with_mixed_labels(step_of):
    objective = Mixup(alpha=0.5, temperature=2, label_share=0.3)
    step, twin = step_of(objective), step_of(objective)
    mixture, partners, share = mixed(twin.x, 0.5, generator())
    logits = twin.student(mixture)
    classes = logits.shape[1]
    soft = share * F.one_hot(twin.labels, classes) + (1 - share) * F.one_hot(twin.labels[partners], classes)
    labels = -(soft * F.log_softmax(logits, dim=1)).sum(1).mean()
    expected = 0.7 * kd_loss(logits, twin.teacher(mixture), 2.0) + 0.3 * labels
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_with_all_share_for_the_labels_no_teacher_is_asked(step_of):
    objective = Mixup(label_share=1)
    assert not objective.uses_teacher
    assert Mixup().uses_teacher
    loss = objective.loss(step_of(objective, teachers=()))
    assert set(loss.terms) == {"labels"}


def test_a_batch_of_one_sample_is_itself():
    x = torch.rand(1, 1, 4, 4, generator=generator())
    mixture, partners, _ = mixed(x, 1.0, generator())
    torch.testing.assert_close(mixture, x)
    assert partners.tolist() == [0]


def test_draws_come_from_the_steps_generator_alone():
    state = np.random.get_state()[1].copy()
    first, second, other = (mixed(torch.zeros(8, 1), 1.0, generator(seed)) for seed in (0, 0, 1))
    assert first[2] == second[2] != other[2]
    assert torch.equal(first[1], second[1])
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("alpha", [0, -1, 101])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValidationError, match="alpha"):
        Mixup(alpha=alpha)
