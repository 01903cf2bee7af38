import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from torch import nn

from kdpipe.foundation.plugins import find, names
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.classes import InOrder
from kdpipe.stages.learned import learned_of
from kdpipe.stages.objectives.adaad import Adaad
from kdpipe.stages.objectives.configured import as_keys
from kdpipe.stages.objectives.divergence import kl
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.mixture import LABEL_PROBABILITY, Council, Mixture, TeacherShare, label_logits, mixed
from kdpipe.stages.objectives.objective import Setting, Step, Teacher
from kdpipe.stages.objectives.rslad import Rslad

PACKAGE = "kdpipe.stages.objectives"
ATTACK = Attack(epsilon=0.1, steps=2)
OTHER = (TeacherShare(name="other"),)


def answers_of(*, teachers=2, samples=6, classes=4, seed=0, scale=3.0):
    drawn = np.random.default_rng(seed).normal(size=(teachers, samples, classes)) * scale
    labels = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, classes, samples))
    return [torch.from_numpy(one) for one in drawn], labels


def council(labels, mixture=None, *, weights=(1.0, 1.0), temperature=1.0, modules=None, log_weights=None):
    """A council of as many teachers as there are weights, about samples with these labels."""
    shares = [TeacherShare(name=str(number), weight=weight) for number, weight in enumerate(weights[1:])]
    objective = mixed(Kd(temperature=temperature), (mixture or Mixture()).model_copy(update={"teacher_weight": weights[0]}), shares)
    modules = modules or [nn.Identity() for _ in weights]
    step = Step(
        x=torch.empty(0),
        labels=labels,
        indices=labels,
        student=nn.Identity(),
        generator=torch.Generator(),
        teachers=tuple(Teacher(module) for module in modules),
    )
    return Council(objective, step, log_weights)


def as_array(answers):
    return np.stack([answer.numpy() for answer in answers])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 4.0, 30.0]), st.floats(0.05, 10))
def test_softened_by_the_objectives_temperature_it_is_the_weighted_mean_of_the_softened_probabilities(seed, temperature, weight):
    answers, labels = answers_of(seed=seed)
    got = F.softmax(council(labels, weights=(1.0, weight), temperature=temperature).mix(answers) / temperature, dim=1)
    each = softmax(as_array(answers) / temperature, axis=2)
    expected = (each[0] + weight * each[1]) / (1 + weight)
    assert got.numpy() == pytest.approx(expected, abs=1e-6)  # weights are float32


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_students_gradient_is_that_of_the_weighted_sum_of_the_teachers_divergences(temperature):
    answers, labels = answers_of(seed=3)
    student = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mixture = council(labels, weights=(1.0, 3.0), temperature=temperature).mix(answers)
    (got,) = torch.autograd.grad(kl(mixture, student, temperature), student)
    (expected,) = torch.autograd.grad(0.25 * kl(answers[0], student, temperature) + 0.75 * kl(answers[1], student, temperature), student)
    assert torch.allclose(got, expected, atol=1e-7)


def test_a_mean_of_logits_is_there_as_well():
    answers, labels = answers_of()
    got = council(labels, Mixture(of="logits"), weights=(1.0, 3.0)).mix(answers)
    assert softmax(got.numpy(), axis=1) == pytest.approx(softmax(0.25 * answers[0].numpy() + 0.75 * answers[1].numpy(), axis=1), abs=1e-6)


def test_confidence_weights_are_those_of_the_paper():
    answers, labels = answers_of(teachers=3)
    got = council(labels, Mixture(weights="confidence"), weights=(1.0, 1.0, 1.0)).believed(answers).weights
    surprise = -np.take_along_axis(log_softmax(as_array(answers), axis=2), labels.numpy()[None, :, None], axis=2)[:, :, 0]
    expected = (1 - softmax(surprise, axis=0)) / (3 - 1)
    assert got.numpy() == pytest.approx(expected.T, abs=1e-6)
    assert expected.sum(axis=0) == pytest.approx(np.ones(6))


@pytest.mark.parametrize("weights", ["fixed", "confidence"])
def test_one_teacher_alone_is_itself(weights):
    answers, labels = answers_of(teachers=1)
    got = council(labels, Mixture(weights=weights), weights=(1.0,)).mix(answers)
    assert softmax(got.numpy(), axis=1) == pytest.approx(softmax(answers[0].numpy(), axis=1), abs=1e-9)


RIGHT, WRONG, UNSURE = [0.0, 4.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.4, 0.3]


@pytest.mark.parametrize(
    ("gate", "threshold", "first", "second", "weights"),
    [
        ("wrong", None, RIGHT, WRONG, [1, 0]),
        ("wrong", None, RIGHT, UNSURE, [0.5, 0.5]),
        ("label-probability", 0.5, RIGHT, UNSURE, [1, 0]),
        ("label-probability", 0.3, WRONG, UNSURE, [0, 1]),
        ("confidence", 0.5, WRONG, UNSURE, [1, 0]),
        (None, None, WRONG, UNSURE, [0.5, 0.5]),
    ],
)
def test_a_gate_shuts_out_who_is_unreliable_about_a_sample(gate, threshold, first, second, weights):
    labels = torch.tensor([1])
    believed = council(labels, Mixture(gate=gate, gate_threshold=threshold)).believed([torch.tensor([first]), torch.tensor([second])])
    assert believed.weights.tolist() == [pytest.approx(weights)]
    assert believed.any.tolist() == [True]


def test_where_nobody_is_believed_the_label_takes_the_teachers_place():
    answers = [torch.tensor([WRONG, RIGHT]), torch.tensor([WRONG, WRONG])]
    asked = council(torch.tensor([1, 1]), Mixture(gate="wrong"))
    got = F.softmax(asked.mix(answers), dim=1)
    rest = (1 - LABEL_PROBABILITY) / 2
    assert got[0].tolist() == pytest.approx([rest, LABEL_PROBABILITY, rest], abs=1e-6)
    assert got[1].tolist() == pytest.approx(F.softmax(torch.tensor(RIGHT), dim=0).tolist(), abs=1e-6)
    assert asked.believed(answers).any.tolist() == [False, True]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 50), st.integers(0, 49))
def test_the_labels_stand_in_has_its_probability_for_any_number_of_classes(classes, label):
    probabilities = F.softmax(label_logits(torch.tensor([label % classes]), classes).double(), dim=1)
    assert probabilities[0, label % classes].item() == pytest.approx(LABEL_PROBABILITY, abs=1e-6)
    assert probabilities.sum().item() == pytest.approx(1)


def test_a_teacher_has_no_part_in_samples_of_classes_that_it_does_not_know():
    partial = InOrder(nn.Identity(), (0, None, 1))
    asked = council(torch.tensor([0, 1, 2]), modules=[nn.Identity(), partial])
    answers = [torch.randn(3, 3), torch.randn(3, 3)]
    assert asked.believed(answers).weights.tolist() == [pytest.approx([0.5, 0.5]), pytest.approx([1, 0]), pytest.approx([0.5, 0.5])]


def test_the_learned_weights_loss_is_minus_log_of_the_mixtures_probability_and_convex():
    answers, labels = answers_of()
    log_weights = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    asked = council(labels, Mixture(weights="learned"), log_weights=log_weights)
    weights = softmax(log_weights.detach().numpy())
    probabilities = np.take_along_axis(softmax(as_array(answers), axis=2), labels.numpy()[None, :, None], axis=2)[:, :, 0]
    assert asked.surprise(answers).item() == pytest.approx(-np.log(weights @ probabilities).mean(), rel=1e-6)

    def surprise(values):
        return council(labels, Mixture(weights="learned"), log_weights=values).surprise(answers)

    assert torch.autograd.gradcheck(surprise, (log_weights,))


def test_learned_weights_find_the_teacher_that_is_right():
    labels = torch.arange(4)
    good, bad = F.one_hot(labels, 4) * 4.0, F.one_hot(labels.roll(1), 4) * 4.0
    log_weights = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([log_weights], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        council(labels, Mixture(weights="learned"), log_weights=log_weights).surprise([bad, good]).backward()
        optimizer.step()
    assert F.softmax(log_weights, dim=0)[1] > 0.9
    assert council(labels, Mixture(weights="learned"), log_weights=log_weights).believed([bad, good]).weights[0, 1] > 0.9


def test_extreme_answers_stay_finite_in_value_and_gradient():
    for mixture in (Mixture(), Mixture(weights="confidence"), Mixture(gate="wrong"), Mixture(of="logits", gate="confidence", gate_threshold=0.9)):
        answers = [torch.tensor([[1e3, -1e3, 0.0]] * 3, requires_grad=True), torch.tensor([[-1e3, 1e3, 0.0]] * 3).bfloat16()]
        mixed_answer = council(torch.tensor([0, 1, 2]), mixture, temperature=4.0).mix(answers)
        assert torch.isfinite(mixed_answer).all()
        kl(mixed_answer, torch.zeros(3, 3)).backward()
        assert torch.isfinite(answers[0].grad).all()


ONE_TEACHER = [name for name in names(PACKAGE) if find(PACKAGE, name, at="test").needs_teacher and not find(PACKAGE, name, at="test")().teacher_roles]


@pytest.mark.parametrize("name", ONE_TEACHER)
def test_in_front_of_any_objective_a_council_of_one_and_the_same_teacher_is_that_teacher(name, step_of, tiny, digits):
    kind = find(PACKAGE, name, at="test")
    objective = kind.model_validate({"attack": ATTACK} if kind.robust else {})

    def setting(step):
        return Setting(step.student, tuple(teacher.module for teacher in step.teachers), step.x[:2], len(digits.train), lambda: tiny(seed=7).module)

    def loss_of(objective, teachers):
        step = step_of(Kd(), teachers=teachers, progress=0.5)
        torch.manual_seed(0)  # projectors and peers are drawn from torch's own stream
        step.auxiliary = objective.auxiliary(setting(step))
        return step, objective.loss(step)

    alone, expected = loss_of(objective, step_of(Kd()).teachers)
    (teacher,) = alone.teachers
    together, got = loss_of(mixed(objective, Mixture(), OTHER), (teacher, Teacher(copy.deepcopy(teacher.module))))
    assert got.total.item() == pytest.approx(expected.total.item(), rel=2e-3, abs=1e-5)  # rounding may turn a sign within an attack
    got.total.backward()
    assert any(parameter.grad is not None for parameter in together.student.parameters())
    assert all(parameter.grad is None for each in together.teachers for parameter in each.module.parameters())
    assert mixed(objective, Mixture(), OTHER).name == name


def test_an_attack_that_goes_through_the_teacher_goes_through_all_of_them(step_of, tiny):
    objective = mixed(Adaad(attack=ATTACK), Mixture(), OTHER)
    step = step_of(objective)
    second = Teacher(tiny(seed=5).module.eval().requires_grad_(False))
    both = replace(step, teachers=(step.teachers[0], second), _targets={})
    x = step.x.clone().requires_grad_()
    council = Council(objective, both, None)
    (gradient,) = torch.autograd.grad(kl(council(x), torch.zeros(8, 10)), x)
    with torch.no_grad():
        other = second.module(x)
    council.teachers[1] = lambda x: other  # the same answer, without a way through it
    (without,) = torch.autograd.grad(kl(council(x), torch.zeros(8, 10)), x)
    assert gradient.abs().max() > 0
    assert not torch.allclose(gradient, without, rtol=1e-3)
    assert (objective.attacked(both) - step.x).abs().max() <= 0.1 + 1e-6


def test_what_an_objective_learns_beside_the_student_is_learned_in_front_of_a_mixture_too(step_of):
    kd = Kd.model_validate({"temperature": {"from": 1, "to": 21, "shape": "learned"}, "weighting": "uncertainty"})
    objective = mixed(kd, Mixture(weights="learned"), OTHER)
    learned = learned_of(objective)
    step = step_of(objective)
    both = replace(step, teachers=step.teachers * 2, _targets={})
    loss = learned.weighed(learned.bound(objective, 0.5).loss(both), "test")
    loss.total.backward()
    assert {"objective/temperature"} == set(learned.schedules)
    assert learned.positions["objective/temperature"].grad is not None
    assert step.auxiliary.log_weights.grad is not None
    assert learned.log_variances.grad[:3].abs().min() > 0


def test_each_teacher_is_asked_about_the_clean_batch_once_a_step(step_of):
    objective = mixed(Rslad(attack=ATTACK), Mixture(weights="learned", gate="wrong"), OTHER)
    step = step_of(objective)
    first = step.teachers[0]
    second = Teacher(copy.deepcopy(first.module))
    asked = []
    for module in (first.module, second.module):
        module.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    loss = objective.loss(replace(step, teachers=(first, second), _targets={}))
    assert len(asked) == 2
    assert {"weight of teacher", "weight of other", "from labels", "mixture"} <= set(loss.terms)
    assert loss.terms["weight of teacher"].item() == pytest.approx(0.5)


def test_known_answers_are_used_where_the_batch_is_as_it_lies_in_the_data(step_of):
    objective = mixed(Rslad(attack=ATTACK), Mixture(), OTHER)
    step = step_of(objective)
    table = torch.randn(8, 10)

    def never(x):
        raise AssertionError("asked though it is known")

    known = tuple(Teacher(module, known=lambda indices: table[indices]) for module in (never, never))
    loss = objective.loss(replace(step, teachers=known, augmented=False, _targets={}))
    assert torch.isfinite(loss.total)


def test_the_whole_is_written_as_keys_that_differ_with_the_mixture():
    one, other = (as_keys(mixed(Kd(), Mixture(weights=weights), OTHER)) for weights in ("fixed", "learned"))
    assert one != other
    assert one["names"] == ["teacher", "other"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gate": "confidence"}, "gate = 'confidence' needs gate_threshold, the probability below which a teacher is not believed"),
        ({"gate_threshold": 0.5}, "gate_threshold = … needs gate = 'label-probability' or 'confidence'"),
        ({"gate": "wrong", "gate_threshold": 0.5}, "gate_threshold = … needs gate = 'label-probability' or 'confidence'"),
        ({"gate": "confidence", "gate_threshold": 1.0}, "less than 1"),
        ({"teacher_weight": math.inf}, "finite"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        Mixture.model_validate(keys)
