import pytest
import torch
from torch import nn

from kdpipe.foundation.plugins import find, names
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.at import At
from kdpipe.stages.objectives.objective import Objective, Step, Teacher, weighted
from kdpipe.stages.objectives.rslad import Rslad

PACKAGE = "kdpipe.stages.objectives"


def test_a_weighted_loss_tells_its_terms_before_their_weights():
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0)
    loss = weighted(first=(0.5, a), second=(2.0, b))
    loss.total.backward()
    assert loss.total.item() == 7.0
    assert a.grad.item() == 0.5
    assert {name: value.item() for name, value in loss.terms.items()} == {"first": 2.0, "second": 3.0}
    assert not loss.terms["first"].requires_grad


@pytest.mark.parametrize("name", names(PACKAGE))
def test_every_objective_knows_its_own_name_and_says_what_its_keys_are(name):
    kind = find(PACKAGE, name, at="test")
    assert kind().name == name
    assert all(field.description for field in kind.model_fields.values())
    assert kind.robust == ("attack" in kind.model_fields)


def test_a_users_objective_is_named_by_where_it_is():
    class Own(Objective):
        """Nothing."""

    assert Own().name == f"{__name__}:test_a_users_objective_is_named_by_where_it_is.<locals>.Own"


def test_an_attack_starts_where_the_paper_starts_it_unless_the_user_says_otherwise():
    assert Rslad().attack.start == "gaussian"
    assert At().attack.start == "uniform"
    assert Rslad(attack=Attack(start="uniform")).attack.start == "uniform"
    assert Rslad(attack=Attack(steps=3)).attack.steps == 3


def test_the_attack_leaves_the_student_as_it_was_also_when_the_loss_fails(step_of):
    objective = At(attack=Attack(epsilon=0.1, steps=2))
    step = step_of(objective)
    step.student.get_submodule("body.bn1").eval()
    next(iter(step.student.parameters())).requires_grad_(False)
    state = {name: value.clone() for name, value in step.student.state_dict().items()}
    modes = [module.training for module in step.student.modules()]
    flags = [parameter.requires_grad for parameter in step.student.parameters()]

    def fails(logits):
        raise ArithmeticError

    objective.worst_case(step, lambda logits: logits[:, 0])
    with pytest.raises(ArithmeticError):
        objective.worst_case(step, fails)
    assert [module.training for module in step.student.modules()] == modes
    assert [parameter.requires_grad for parameter in step.student.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in step.student.state_dict().items())
    assert all(parameter.grad is None for parameter in step.student.parameters())


def test_known_logits_are_used_for_unaugmented_batches_alone():
    teacher = Teacher(nn.Linear(2, 3), known=lambda indices: torch.full((len(indices), 3), 9.0))
    x = torch.zeros(2, 2)
    step = Step(x, torch.zeros(2), torch.arange(2), nn.Identity(), torch.Generator(), (teacher,), augmented=False)
    assert torch.equal(step.targets, torch.full((2, 3), 9.0))
    augmented = Step(x, torch.zeros(2), torch.arange(2), nn.Identity(), torch.Generator(), (teacher,), augmented=True)
    assert torch.equal(augmented.targets, teacher.module(x))
    assert not augmented.targets.requires_grad


def test_an_objective_without_a_loss_says_so(step_of):
    with pytest.raises(NotImplementedError, match="Objective implements neither loss nor logit_loss"):
        Objective().loss(step_of(Objective()))
