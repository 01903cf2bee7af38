import pytest
import torch

from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.noise import Noise, with_noise


def generator():
    return torch.Generator().manual_seed(0)


def test_the_first_samples_get_noise_of_that_size_and_the_rest_none():
    x = torch.full((100, 1, 8, 8), 0.5)
    noisy = with_noise(x, 0.1, 40, generator())
    assert torch.equal(noisy[40:], x[40:])
    offset = (noisy - x)[:40]
    assert offset.std().item() == pytest.approx(0.1, rel=0.05)  # of 2560 values: five standard errors are 7 %
    assert offset.mean().item() == pytest.approx(0, abs=0.01)
    assert torch.equal(x, torch.full_like(x, 0.5))


def test_values_stay_in_the_datas_range_and_the_memory_format_stays():
    x = torch.rand(8, 3, 4, 4, generator=generator()).contiguous(memory_format=torch.channels_last)
    noisy = with_noise(x, 2.0, 8, generator())
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert noisy.is_contiguous(memory_format=torch.channels_last)


def test_as_much_is_drawn_whatever_the_share_is():
    x = torch.rand(8, 1, 4, 4, generator=generator())
    few, many = generator(), generator()
    one, other = with_noise(x, 0.1, 2, few), with_noise(x, 0.1, 8, many)
    assert torch.equal(few.get_state(), many.get_state())
    assert torch.equal(one[:2], other[:2])


@pytest.mark.parametrize("keys", [{"sigma": 0}, {"noisy_share": 0}], ids=str)
def test_without_noise_it_is_plain_distillation(keys, step_of):
    objective = Noise(**keys)
    assert torch.equal(objective.loss(step_of(objective)).total, Kd().loss(step_of(Kd())).total)


def test_the_teacher_judges_the_clean_batch_and_the_student_the_half_noisy_one(step_of):
    objective = Noise()
    step = step_of(objective)
    seen = {}
    for name, module in (("student", step.student), ("teacher", step.teacher.module)):
        module.register_forward_pre_hook(lambda m, inputs, name=name: seen.setdefault(name, []).append(inputs[0].clone()))
    loss = objective.loss(step)
    assert [len(seen[name]) for name in ("student", "teacher")] == [1, 1]
    assert torch.equal(seen["teacher"][0], step.x)
    assert torch.equal(seen["student"][0], with_noise(step.x, 0.1, 4, generator()))
    loss.total.backward()
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())


def test_its_value_is_that_of_kd_on_the_noisy_batch(step_of):
    objective = Noise(temperature=2, label_share=0.3, noisy_share=1, sigma=0.2)
    step, twin = step_of(objective), step_of(objective)
    logits = twin.student(with_noise(twin.x, 0.2, 8, generator()))
    expected = Kd(temperature=2, label_share=0.3).logit_loss(logits, twin.targets, twin.labels, 0.0).total
    assert torch.equal(objective.loss(step).total, expected)


def test_a_sample_alone_is_noisy_from_a_share_above_a_half(step_of):
    for share, noisy in ((0.4, False), (0.6, True)):
        objective = Noise(noisy_share=share)
        step = step_of(objective, samples=1)
        step.student.eval()  # BatchNorm cannot learn from one sample with maps of one pixel
        seen = []
        step.student.register_forward_pre_hook(lambda m, inputs, seen=seen: seen.append(inputs[0]))
        assert torch.isfinite(objective.loss(step).total)
        assert torch.equal(seen[0], step.x) != noisy
