import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.hierarchical import Hierarchical, attention_distance
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.objective import Setting, Step, Teacher


def maps(seed, channels, size=4):
    return torch.randn(3, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_attention_distance_is_the_papers_formula():
    student, teacher = maps(0, 2), maps(1, 5)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        a, b = (s**2).sum(0).flatten(), (t**2).sum(0).flatten()
        total += float(((a / a.norm() - b / b.norm()) ** 2).sum())
    assert attention_distance(student, teacher).item() == pytest.approx(total / 3)


def test_attention_is_blind_to_scale_and_to_the_order_of_channels():
    student = maps(0, 4)
    assert attention_distance(student, 3 * student.flip(1)).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda s: attention_distance(s, maps(1, 2)), maps(0, 3).requires_grad_())


def test_layers_are_paired_stage_by_stage_and_projected_where_widths_differ(step_of):
    step = step_of(Hierarchical(match="features"))
    pairs = step.auxiliary
    assert pairs.student_layers == ("body.layer1", "body.layer2", "body.layer3")
    assert pairs.teacher_layers == ("body.layer1", "body.layer2", "body.layer3")
    assert [tuple(projector.weight.shape) for projector in pairs.projectors] == [(8, 4, 1, 1), (16, 8, 1, 1), (32, 16, 1, 1)]


def test_its_value_is_kd_plus_the_weighted_mean_over_the_pairs(step_of):
    objective = Hierarchical(match="features", hidden_weight=2.5)
    step = step_of(objective)
    kept = {}
    for side, module in (("student", step.student), ("teacher", step.teacher.module)):
        for stage in (1, 2, 3):
            module.get_submodule(f"body.layer{stage}").register_forward_hook(lambda m, i, out, key=(side, stage): kept.update({key: out.detach()}))
    logits, target = step.student(step.x), step.teacher(step.x)
    expected = Kd().logit_loss(logits, target, step.labels, 0.0).total
    hidden = [F.mse_loss(step.auxiliary.projectors[k - 1](kept["student", k]), kept["teacher", k]) for k in (1, 2, 3)]
    assert objective.loss(step).total.item() == pytest.approx((expected + 2.5 * sum(hidden) / 3).item(), rel=1e-5)


def test_student_and_projectors_learn_and_the_teacher_does_not(step_of):
    objective = Hierarchical(match="features")
    step = step_of(objective)
    objective.loss(step).total.backward()
    assert all(parameter.grad is not None for parameter in [*step.student.parameters(), *step.auxiliary.parameters()])
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
    assert not step.student._forward_hooks
    assert not step.student.get_submodule("body.layer1")._forward_hooks


def test_attention_needs_nothing_trained_and_a_student_like_the_teacher_has_no_hidden_loss(step_of):
    objective = Hierarchical()
    step = step_of(objective)
    assert not list(step.auxiliary.parameters())
    step.teachers = (Teacher(step.student.eval()),)
    assert objective.loss(step).terms["hidden"].item() == pytest.approx(0, abs=1e-9)


def test_maps_of_different_size_are_pooled_to_the_smaller():
    student = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 3))
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3))
    objective = Hierarchical(student_layers=("0",), teacher_layers=("1",))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    auxiliary = objective.auxiliary(Setting(student, (teacher,), x[:2], 5))
    labels = torch.zeros(5, dtype=torch.int64)
    loss = objective.loss(Step(x, labels, labels, student, torch.Generator(), (Teacher(teacher),), auxiliary))
    with torch.no_grad():
        expected = attention_distance(student[0](x), F.avg_pool2d(teacher[:2](x), 2))
    assert loss.terms["hidden"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_networks_without_maps_are_compared_by_features():
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    setting = Setting(student, (teacher,), torch.rand(2, 1, 2, 2), 5)
    pairs = Hierarchical(match="features").auxiliary(setting)
    assert pairs.student_layers == ("2",)
    assert tuple(pairs.projectors[0].weight.shape) == (8, 6)
    with pytest.raises(ConfigError) as caught:
        Hierarchical().auxiliary(setting)
    problem = caught.value.problems[0]
    assert problem.message == "layer '2' gives (2, 6): attention needs feature maps"
    assert problem.at == "hierarchical"
    assert problem.do == "set match = 'features'"


def test_a_layer_that_is_not_there_is_answered_with_those_that_are(tiny):
    objective = Hierarchical(student_layers=("body.layer9",), teacher_layers=("body.layer1",))
    network = tiny().module.eval()
    with pytest.raises(ConfigError) as caught:
        objective.auxiliary(Setting(network, (network,), torch.rand(2, 1, 8, 8), 5))
    problem = caught.value.problems[0]
    assert problem.message == "no layer 'body.layer9' runs in the network"
    assert problem.at == "student_layers"
    assert "body.layer1, body.layer2, body.layer3" in problem.do


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"student_layers": ["a"]}, "go together"),
        ({"student_layers": ["a"], "teacher_layers": ["a", "b"]}, "1 student_layers and 2 teacher_layers cannot be paired"),
    ],
    ids=["one side", "unequal"],
)
def test_layers_must_come_in_pairs(keys, message):
    with pytest.raises(ValidationError, match=message):
        Hierarchical.model_validate(keys)
