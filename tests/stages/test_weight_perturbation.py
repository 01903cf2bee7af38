import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.weight_perturbation import perturbed

GAMMA = 0.01


@pytest.fixture
def student(tiny):
    return tiny(width=0.25).module.train()


def loss_on(student, step):
    return lambda: Kd().loss(step).total


def test_each_tensor_moves_by_its_share_along_its_gradient_and_vectors_do_not(step_of):
    step = step_of(Kd())
    before = copy.deepcopy(step.student)
    expected = dict(zip(dict(before.named_parameters()), torch.autograd.grad(Kd().loss(step).total, list(step.student.parameters())), strict=True))
    step.student.load_state_dict(before.state_dict())
    with perturbed(step.student, loss_on(step.student, step), GAMMA):
        for (name, moved), old in zip(step.student.named_parameters(), before.parameters(), strict=True):
            move = (moved - old).detach()
            if moved.ndim < 2:
                assert torch.equal(moved, old), name
            else:
                assert move.norm().item() == pytest.approx(GAMMA * old.norm().item(), rel=1e-3), name
                assert F.cosine_similarity(move.flatten(), expected[name].flatten(), dim=0).item() == pytest.approx(1, abs=1e-3), name


def test_the_loss_is_higher_there(step_of):
    step = step_of(Kd())
    with torch.no_grad():
        low = Kd().loss(step).total.item()
    with perturbed(step.student, loss_on(step.student, step), 0.02), torch.no_grad():
        assert Kd().loss(step).total.item() > low


def test_weights_come_back_to_the_bit_and_no_buffer_or_gradient_is_left(step_of):
    step = step_of(Kd())
    before = copy.deepcopy(step.student.state_dict())
    with perturbed(step.student, loss_on(step.student, step), GAMMA):
        pass
    assert all(torch.equal(value, before[name]) for name, value in step.student.state_dict().items())
    assert all(parameter.grad is None for parameter in step.student.parameters())


def test_what_an_optimiser_adds_meanwhile_stays_added(step_of):
    step = step_of(Kd())
    before = copy.deepcopy(step.student)
    with perturbed(step.student, loss_on(step.student, step), GAMMA), torch.no_grad():
        for parameter in step.student.parameters():
            parameter.add_(0.25)
    for parameter, old in zip(step.student.parameters(), before.parameters(), strict=True):
        assert (parameter - old - 0.25).abs().max() < 1e-6


def test_an_optimisers_step_of_rate_nought_leaves_every_weight(step_of):
    step = step_of(Kd())
    before = copy.deepcopy(step.student)
    optimizer = torch.optim.SGD(step.student.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1)
    with perturbed(step.student, loss_on(step.student, step), GAMMA):
        Kd().loss(step).total.backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(step.student.parameters(), before.parameters(), strict=True))


def test_weights_come_back_also_after_an_error(step_of):
    step = step_of(Kd())
    before = copy.deepcopy(step.student)
    with pytest.raises(ArithmeticError), perturbed(step.student, loss_on(step.student, step), GAMMA):
        raise ArithmeticError
    assert all(torch.equal(a, b) for a, b in zip(step.student.parameters(), before.parameters(), strict=True))


def test_what_the_question_does_to_remembered_state_is_undone(student):
    remembered = nn.BatchNorm1d(3)

    def loss():
        remembered(torch.arange(6.0).reshape(2, 3))
        return student(torch.ones(2, 1, 8, 8)).sum()

    with perturbed(student, loss, GAMMA, remembering=remembered):
        assert remembered.num_batches_tracked == 0
    assert torch.equal(remembered.running_mean, torch.zeros(3))


def test_tensors_without_a_gradient_and_frozen_ones_stay():
    module = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "frozen": nn.Linear(2, 2).requires_grad_(False)})
    before = copy.deepcopy(module)

    def loss():
        return module["frozen"](module["used"](torch.ones(1, 2))).square().sum()

    with perturbed(module, loss, 0.1):
        assert not torch.equal(module["used"].weight, before["used"].weight)
        assert torch.equal(module["unused"].weight, before["unused"].weight)
        assert torch.equal(module["frozen"].weight, before["frozen"].weight)


def test_where_the_loss_is_flat_nothing_moves():
    module = nn.Linear(2, 2)
    before = copy.deepcopy(module)
    with perturbed(module, lambda: module(torch.zeros(1, 2)).sum(), 0.1):
        assert torch.equal(module.weight, before.weight)
