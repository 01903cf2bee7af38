import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.attention import Attention, attention_loss, attention_map
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Setting, Teacher


def maps(seed, channels, size=4):
    return torch.randn(3, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_it_is_the_squared_distance_of_normed_sums_over_channels(power):
    student, teacher = maps(0, 2).numpy(), maps(1, 5).numpy()
    a, b = ((np.abs(values) ** power).sum(1).reshape(3, -1) for values in (student, teacher))
    a, b = (values / np.sqrt((values**2).sum(1, keepdims=True)) for values in (a, b))
    assert attention_loss(torch.from_numpy(student), torch.from_numpy(teacher), power).item() == pytest.approx(((a - b) ** 2).sum(1).mean())


def test_attention_is_blind_to_scale_and_to_the_order_of_channels():
    student = maps(0, 4)
    assert attention_loss(student, 3 * student.flip(1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_its_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone(power):
    teacher = maps(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, teacher.detach(), power), maps(0, 3).requires_grad_())
    attention_loss(maps(0, 3).requires_grad_(), teacher, power).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4], ids=["dead", "faint", "loud"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_value_and_gradient_are_finite_for_dead_faint_and_loud_maps_of_one_sample(scale, dtype):
    student = (maps(0, 3)[:1] * scale).to(dtype).requires_grad_()
    value = attention_loss(student, maps(1, 3)[:1].to(dtype))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_the_larger_map_is_pooled_to_the_smaller():
    student, teacher = maps(0, 2), maps(1, 3, size=8)
    assert attention_loss(student, teacher).item() == pytest.approx(attention_loss(student, F.avg_pool2d(teacher, 2)).item())


def test_its_value_is_the_labels_and_half_the_weighted_sum_over_the_pairs(step_of):
    objective = Attention(hidden_weight=300.0, teacher_share=0.25, temperature=2.0)
    step = step_of(objective)
    kept = {}
    for side, module in (("student", step.student), ("teacher", step.teacher.module)):
        for stage in (1, 2, 3):
            module.get_submodule(f"body.layer{stage}").register_forward_hook(lambda m, i, out, key=(side, stage): kept.update({key: out.detach()}))
    logits, target = step.student(step.x), step.teacher(step.x)
    hidden = sum(attention_loss(kept["student", k], kept["teacher", k]) for k in (1, 2, 3))
    expected = 0.25 * kd_loss(logits, target, 2.0) + 0.75 * F.cross_entropy(logits, step.labels) + 150 * hidden
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_like_its_teacher_is_left_with_the_labels_and_nothing_is_trained_beside_it(step_of):
    objective = Attention()
    step = step_of(objective)
    assert not list(step.auxiliary.parameters())
    step.teachers = (Teacher(step.student.eval()),)
    loss = objective.loss(step)
    assert loss.terms["hidden"].item() == pytest.approx(0, abs=1e-9)
    assert loss.total.item() == pytest.approx(loss.terms["labels"].item())


def test_the_student_learns_and_the_teacher_does_not(step_of):
    objective = Attention()
    step = step_of(objective)
    objective.loss(step).total.backward()
    assert all(parameter.grad is not None for parameter in step.student.parameters())
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
    assert not step.student.get_submodule("body.layer1")._forward_hooks


def test_networks_without_maps_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ConfigError) as caught:
        Attention().auxiliary(Setting(network, (network,), torch.rand(2, 1, 2, 2), 5))
    problem = caught.value.problems[0]
    assert problem.message == "layer '2' gives (2, 6): attention needs feature maps"
    assert problem.at == "attention"
    assert problem.do == "name layers with maps, or choose kd"


def test_layers_must_come_in_pairs():
    with pytest.raises(ValidationError, match="go together"):
        Attention.model_validate({"student_layers": ["a"]})


def test_attention_is_of_length_one():
    assert attention_map(maps(0, 3)).norm(dim=1).numpy() == pytest.approx(np.ones(3))
