from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.stages.objectives.co_teaching import CoTeaching, smallest
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Setting
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_the_smallest_losses_are_kept_and_at_least_one(losses, share):
    values = torch.tensor(losses)
    kept = smallest(values, share)
    assert len(kept) == max(1, int(share * len(losses) + 1e-6))
    rest = [value for index, value in enumerate(values.tolist()) if index not in set(kept.tolist())]
    assert values[kept].max().item() <= min(rest, default=float("inf"))


def test_whole_numbers_are_kept_whole():
    assert len(smallest(torch.zeros(5), 0.6)) == 3
    assert len(smallest(torch.zeros(10), 1 - 0.7)) == 3
    assert smallest(torch.zeros(4), 0.5).tolist() == [0, 1]


def test_the_kept_share_falls_to_its_end_and_stays():
    objective = CoTeaching(noise_rate=0.4, rise=0.5)
    assert [objective.kept_share(progress) for progress in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.8, 0.6, 0.6])
    assert CoTeaching(noise_rate=0.4, rise=0).kept_share(0) == pytest.approx(0.6)


@pytest.fixture
def with_peer(step_of, tiny, digits):
    """`with_peer(objective, **changed)`: a step whose peer is another tiny network in training mode."""

    def make(objective, **changed):
        step = step_of(objective, **changed)
        step.auxiliary = objective.auxiliary(Setting(step.student, (), step.x[:2], len(digits.train), lambda: tiny(seed=7).module))
        return step

    return make


def test_each_network_learns_on_what_the_other_keeps_averaged_once(with_peer):
    objective = CoTeaching(noise_rate=0.5, rise=0)
    step = with_peer(objective)
    ours = F.cross_entropy(step.student(step.x), step.labels, reduction="none")
    its = F.cross_entropy(step.auxiliary.network(step.x), step.labels, reduction="none")
    for_us, for_it = its.argsort()[:4], ours.argsort()[:4]
    assert set(for_us.tolist()) != set(for_it.tolist())
    loss = objective.loss(step)
    assert loss.terms["labels"].item() == pytest.approx(ours[for_us].mean().item(), rel=1e-5)
    assert loss.terms["peer"].item() == pytest.approx(its[for_it].mean().item(), rel=1e-5)
    assert loss.total.item() == pytest.approx((ours[for_us].mean() + its[for_it].mean()).item(), rel=1e-5)


def test_nothing_left_out_is_cross_entropy_for_both(with_peer):
    objective = CoTeaching(noise_rate=0)
    step = with_peer(objective)
    assert objective.loss(step).terms["labels"].item() == pytest.approx(F.cross_entropy(step.student(step.x), step.labels).item(), rel=1e-5)


def test_no_networks_gradient_depends_on_the_others_beyond_the_choice(with_peer):
    objective = CoTeaching(noise_rate=0.5, rise=0)
    step = with_peer(objective)
    objective.loss(step).total.backward()
    together = [parameter.grad.clone() for parameter in step.student.parameters()]
    chosen = smallest(F.cross_entropy(step.auxiliary.network(step.x), step.labels, reduction="none"), 0.5)
    alone = F.cross_entropy(step.student(step.x)[chosen], step.labels[chosen])
    for a, b in zip(together, torch.autograd.grad(alone, list(step.student.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert all(parameter.grad is not None for parameter in step.auxiliary.network.parameters())


def test_the_teacher_stands_beside_the_labels_of_both(with_peer):
    objective = CoTeaching(noise_rate=0.5, rise=0, teacher_share=0.25, temperature=2.0)
    step = with_peer(objective)
    bare = CoTeaching(noise_rate=0.5, rise=0).loss(step).total
    divergence = sum(kd_loss(network(step.x), step.targets, 2.0) for network in (step.student, step.auxiliary.network))
    assert objective.loss(step).total.item() == pytest.approx((0.75 * bare + 0.25 * divergence).item(), rel=1e-5)


def test_without_a_peer_the_student_keeps_the_share_of_the_end_by_its_own_losses(step_of):
    objective = CoTeaching(noise_rate=0.5, rise=1)
    step = step_of(objective, progress=0.0)
    assert step.auxiliary.network is None
    own = F.cross_entropy(step.student(step.x), step.labels, reduction="none")
    assert objective.loss(step).total.item() == pytest.approx(own.sort().values[:4].mean().item(), rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
def test_value_and_gradient_are_finite_for_extreme_logits(scale):
    student = torch.nn.Linear(2, 3)
    x = torch.tensor([[scale, -scale], [-scale, scale]])
    objective = CoTeaching(noise_rate=0.5, rise=0)
    from kdpipe.stages.objectives.objective import Step

    auxiliary = objective.auxiliary(Setting(student, (), x, 2, lambda: torch.nn.Linear(2, 3)))
    step = Step(x=x, labels=torch.tensor([0, 2]), indices=torch.arange(2), student=student, generator=torch.Generator(), auxiliary=auxiliary)
    loss = objective.loss(step)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_both_networks_are_trained_and_survive_a_kill_to_the_bit(tiny, inputs, context, tmp_path, stopping):
    config = TrainingConfig(epochs=3, batch_size=64, learning_rate=0.05)
    peers = []

    def fresh():
        peers.append(tiny(seed=7).module)
        return peers[-1]

    def trained(folder, stops):
        for stop in stops:
            with pytest.raises(stopping.Stopped):
                train(tiny(), CoTeaching(), None, inputs, config, replace(context, folder=folder, progress=stopping(stop)), label="distill", fresh=fresh)
        network = tiny()
        train(network, CoTeaching(), None, inputs, config, replace(context, folder=folder), label="distill", fresh=fresh)
        return network.module.state_dict(), peers[-1].state_dict()

    student, peer = trained(tmp_path / "whole", [])
    student_again, peer_again = trained(tmp_path / "stopped", [4, 5])
    assert all(torch.equal(student[name], student_again[name]) for name in student)
    assert all(torch.equal(peer[name], peer_again[name]) for name in peer)
    start = tiny(seed=7).module.state_dict()
    assert not all(torch.equal(peer[name], start[name]) for name in peer)
