import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy.spatial.distance import pdist

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.objective import Setting, Teacher
from kdpipe.stages.objectives.relational import Relational, angle_loss, distance_loss


def features(seed, width, samples=5):
    return torch.randn(samples, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def huber(difference):
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5).mean()


def cosines(points):
    found = []
    for j, i, k in itertools.permutations(range(len(points)), 3):
        a, b = points[i] - points[j], points[k] - points[j]
        found.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return np.array(found)


def test_distances_are_scipys_in_units_of_their_mean():
    student, teacher = features(0, 3), features(1, 6)
    ours, theirs = pdist(student.numpy()), pdist(teacher.numpy())
    assert distance_loss(student, teacher).item() == pytest.approx(huber(ours / ours.mean() - theirs / theirs.mean()))


def test_angles_are_those_of_all_triples_of_different_samples():
    student, teacher = features(0, 3), features(1, 6)
    assert angle_loss(student, teacher).item() == pytest.approx(huber(cosines(student.numpy()) - cosines(teacher.numpy())))


def test_turned_shifted_and_scaled_features_keep_their_relations():
    student = features(0, 4)
    turn, _ = torch.linalg.qr(features(2, 4, samples=4))
    moved = 3 * student @ turn + 7
    assert distance_loss(student, moved).item() == pytest.approx(0, abs=1e-12)
    assert angle_loss(student, moved).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("part", [distance_loss, angle_loss], ids=["distances", "angles"])
def test_its_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone(part):
    teacher = features(1, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: part(s, teacher.detach()), features(0, 3).requires_grad_())
    part(features(0, 3).requires_grad_(), teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("part", [distance_loss, angle_loss], ids=["distances", "angles"])
@pytest.mark.parametrize("samples", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["all the same", "far apart"])
def test_value_and_gradient_are_finite_for_equal_samples_and_tiny_batches(part, samples, scale):
    student = (features(0, 3, samples) * scale).float().requires_grad_()
    value = part(student, features(1, 6, samples).float())
    value.backward()
    assert torch.isfinite(value)
    assert student.grad.abs().max() < 1e7  # a mean distance of 0 is taken as 1e-6


def test_two_equal_samples_among_others_give_no_gradient_without_bound():
    student = features(0, 3).float()
    student[1] = student[0]
    student.requires_grad_()
    angle_loss(student, features(1, 6).float()).backward()
    assert student.grad.abs().max() < 10


def test_its_value_is_the_weighted_sum_on_the_last_stages_mean_features(step_of):
    objective = Relational(label_weight=0.5, distance_weight=3, angle_weight=7)
    step = step_of(objective)
    kept = {}
    for side, module in (("student", step.student), ("teacher", step.teacher.module)):
        module.get_submodule("body.layer3").register_forward_hook(lambda m, i, out, key=side: kept.update({key: out.detach().mean((2, 3))}))
    logits = step.student(step.x)
    step.teacher(step.x)
    expected = 0.5 * F.cross_entropy(logits, step.labels) + 3 * distance_loss(kept["student"], kept["teacher"])
    expected = expected + 7 * angle_loss(kept["student"], kept["teacher"])
    loss = objective.loss(step)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in step.student.parameters())
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())


def test_a_student_like_its_teacher_is_left_with_the_labels(step_of):
    objective = Relational()
    step = step_of(objective)
    step.teachers = (Teacher(step.student.eval()),)
    loss = objective.loss(step)
    assert loss.total.item() == pytest.approx(loss.terms["labels"].item(), abs=1e-6)


def test_named_layers_are_compared_and_one_that_is_not_there_is_told(step_of):
    step = step_of(Relational(student_layer="body.layer2", teacher_layer="body.layer3"))
    assert (step.auxiliary.student_layer, step.auxiliary.teacher_layer) == ("body.layer2", "body.layer3")
    with pytest.raises(ConfigError) as caught:
        Relational(student_layer="body.layer9", teacher_layer="body.layer3").auxiliary(Setting(step.student, (step.teacher.module,), step.x[:2], 8))
    problem = caught.value.problems[0]
    assert (problem.message, problem.at) == ("no layer 'body.layer9' runs in the network", "student_layer")
    assert "body.layer1, body.layer2, body.layer3" in problem.do


def test_layers_must_come_in_pairs():
    with pytest.raises(ValidationError, match="go together"):
        Relational(student_layer="a")
