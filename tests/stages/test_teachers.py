from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import Network, save_network
from kdpipe.stages.distill import DistillConfig
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare
from kdpipe.stages.objectives.mtard import Mtard
from kdpipe.stages.objectives.plain import Plain
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.stages.teachers import FurtherTeacher, places, teaching

NATURAL = {"name": "natural", "role": "natural"}


@pytest.fixture
def artifacts(inputs, tiny, tmp_path):
    """Inputs with the artifacts of [teacher] and of two further ones, `a` and `natural`."""
    networks = {"teacher": tiny(seed=1), "teacher-a": tiny(seed=2), "teacher-natural": tiny(seed=3, width=0.5)}
    return replace(inputs, artifacts={name: save_network(network, tmp_path / name) for name, network in networks.items()})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def relabelled(network, labels):
    return Network(network.spec.model_copy(update={"contract": network.spec.contract.model_copy(update={"labels": labels})}), network.module)


def test_one_teacher_and_no_mixture_leave_the_objective_as_it_is(artifacts, tiny):
    objective = Rslad()
    got, teachers = teaching(objective, (), None, artifacts)
    assert got is objective
    assert [same(teacher.module, tiny(seed=1).module) for teacher in teachers] == [True]


def test_an_objective_without_a_teacher_loads_none(inputs):
    assert teaching(Plain(), (TeacherShare(name="a"),), None, inputs) == (Plain(), ())


def test_several_are_mixed_by_name_and_weight(artifacts, tiny):
    shares = (TeacherShare(name="a", weight=3), TeacherShare(name="natural"))
    got, teachers = teaching(Rslad(), shares, Mixture(teacher_weight=2), artifacts)
    assert (got.name, got.names, got.weights) == ("rslad", ("teacher", "a", "natural"), (2, 3, 1))
    assert [len(teacher.module.state_dict()) > 0 for teacher in teachers] == [True] * 3
    assert same(teachers[1].module, tiny(seed=2).module)


@pytest.mark.parametrize(("role", "order"), [("natural", (1, 3)), ("robust", (3, 1))])
def test_roles_decide_who_is_robust_and_who_natural(role, order, artifacts, tiny):
    share = TeacherShare(name="natural", role=role)
    got, teachers = teaching(Mtard(), (share,), None, artifacts)
    expected = {1: tiny(seed=1), 3: tiny(seed=3, width=0.5)}
    assert got == Mtard()
    assert all(same(teacher.module, expected[seed].module) for teacher, seed in zip(teachers, order, strict=True))
    where = {1: "[teacher]", 3: "[[distill.teachers]] natural"}
    assert places(Mtard(), (share,)) == tuple(where[seed] for seed in order)


def test_classes_in_another_order_are_matched_by_name(artifacts, tiny, tmp_path):
    network = tiny(seed=2)
    labels = tuple(reversed(artifacts.data.classes))
    save_network(relabelled(network, labels), tmp_path / "teacher-a")
    _, teachers = teaching(Rslad(), (TeacherShare(name="a"),), None, artifacts)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(teachers[1].module(x), network.module.eval()(x).flip(1))


def test_a_teacher_with_a_role_must_know_every_class(artifacts, tiny, tmp_path):
    labels = (*artifacts.data.classes[:8], "eight", "nine")
    save_network(relabelled(tiny(seed=3, width=0.5), labels), tmp_path / "teacher-natural")
    with pytest.raises(ConfigError) as caught:
        teaching(Mtard(), (TeacherShare(name="natural", role="natural"),), None, artifacts)
    (problem,) = caught.value.problems
    assert problem.message == "a teacher of objective 'mtard' does not know the classes 8, 9"
    assert problem.at == "[[distill.teachers]]"
    assert problem.do == "give a teacher that knows all classes of the data, or choose an objective in front of which teachers are mixed: kd, rslad"


def test_what_trains_a_further_teacher_knows_nothing_of_its_weight_and_role():
    one = FurtherTeacher.model_validate({**NATURAL, "epochs": 3, "objective": "plain", "label_smoothing": 0.1})
    other = FurtherTeacher.model_validate({**NATURAL, "epochs": 3, "objective": "plain", "label_smoothing": 0.1, "role": "robust", "weight": 2})
    assert one.training() == other.training()
    assert one.training().objective == Plain(label_smoothing=0.1)
    assert one.training().label == "teacher-natural"


def test_given_weights_are_not_trained_here_either():
    assert FurtherTeacher.model_validate({"name": "a", "weights": "given"}).training().epochs == 0


@pytest.mark.parametrize(
    ("keys", "message", "at", "do"),
    [
        (
            {"objective": "mtard"},
            "objective 'mtard' needs 2 teachers, robust and natural; there is only [teacher]",
            "distill.objective",
            "add [[distill.teachers]] with a name and role = 'natural'; [teacher] is then the robust one",
        ),
        (
            {"objective": "mtard", "teachers": [NATURAL, {"name": "b", "role": "robust"}]},
            "objective 'mtard' needs 2 teachers, robust and natural; with [teacher] there are 3",
            "distill.objective",
            "keep one [[distill.teachers]]",
        ),
        (
            {"objective": "mtard", "teachers": [{"name": "b"}]},
            "objective 'mtard' needs 2 teachers, robust and natural; which one 'b' is, is not said",
            "distill.teachers",
            "give it role = 'robust' or role = 'natural'; [teacher] takes the other",
        ),
        (
            {"objective": "mtard", "teachers": [NATURAL], "mixture": {}},
            "objective 'mtard' knows its teachers apart, they are not mixed",
            "distill.mixture",
            "remove [distill.mixture], or choose an objective that knows one teacher: kd, rslad",
        ),
        (
            {"objective": "kd", "teachers": [{"name": "b"}, {"name": "b"}]},
            "two further teachers are called 'b'",
            "distill.teachers",
            "give each a name of its own",
        ),
        (
            {"objective": "kd", "teachers": [{"name": "b", "weight": 0}], "mixture": {"teacher_weight": 0}},
            "the weights of all teachers are 0",
            "distill.mixture",
            "give one of them a weight above 0",
        ),
    ],
    ids=["one teacher", "three teachers", "no role", "mixture", "one name", "weights"],
)
def test_teachers_that_do_not_fit_are_told_while_the_file_is_read(keys, message, at, do):
    with pytest.raises(ConfigError) as caught:
        DistillConfig.model_validate(keys)
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == (message, at, do)


@pytest.mark.parametrize("name", ["", "Natural", "a b", "-a", "a" * 41])
def test_a_name_that_cannot_be_a_steps_is_refused(name):
    with pytest.raises(ValidationError) as caught:
        DistillConfig.model_validate({"objective": "kd", "teachers": [{"name": name}]})
    assert [error["loc"] for error in caught.value.errors()] == [("teachers", 0, "name")]


def test_an_objective_without_a_teacher_asks_for_no_further_ones():
    config = DistillConfig.model_validate({"objective": "plain", "teachers": [NATURAL]})
    assert config.further_teachers() == ()
    assert config.identity()["teachers"] is None
