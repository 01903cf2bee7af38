import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.stages.objectives.elr import CLAMP, Elr, Memory, clamped_predictions, early_learning_regulariser
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig


def logits(seed, classes=4):
    return torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def test_the_regulariser_is_the_papers_formula():
    p, q = (F.softmax(logits(seed), 1) for seed in (0, 1))
    expected = np.log(1 - (p.numpy() * q.numpy()).sum(1)).mean()
    assert early_learning_regulariser(p, q).item() == pytest.approx(expected)


def test_it_pulls_the_prediction_towards_the_target_the_more_the_better_they_agree():
    q = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(early_learning_regulariser(p, q), p)
    assert torch.allclose(gradient, -q / (1 - (p * q).sum()))  # lemma of section 4.1, before the softmax


def test_the_averages_follow_their_recursion_by_training_index():
    memory, draws = Memory(6, 3), torch.Generator().manual_seed(0)
    expected = np.zeros((6, 3))
    for _ in range(5):
        indices = torch.randperm(6, generator=draws)[:4]
        p = torch.rand(4, 3, generator=draws)
        targets = memory.updated_(indices, p, 0.7)
        normed = p.numpy() / p.numpy().sum(1, keepdims=True)
        expected[indices.numpy()] = 0.7 * expected[indices.numpy()] + 0.3 * normed
        assert targets.numpy() == pytest.approx(expected[indices.numpy()], rel=1e-5)
    assert memory.q.numpy() == pytest.approx(expected, rel=1e-5)
    assert not memory.q.requires_grad
    assert not list(memory.parameters())


def test_its_value_is_cross_entropy_and_the_weighted_regulariser(step_of):
    objective = Elr(regularisation=2.0, decay=0.6)
    step = step_of(objective)
    step.indices = torch.arange(100, 108)
    output = step.student(step.x)
    p = clamped_predictions(output)
    q = 0.4 * p / p.sum(1, keepdim=True)  # the first time a sample is seen
    expected = F.cross_entropy(output, step.labels) + 2 * torch.log(1 - (p * q).sum(1)).mean()
    assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.auxiliary.q.shape == (200, 10)
    assert step.auxiliary.q[100:108].numpy() == pytest.approx(q.detach().numpy(), rel=1e-5)
    assert (step.auxiliary.q[:100] == 0).all()
    assert (step.auxiliary.q[108:] == 0).all()


def test_without_weight_it_is_cross_entropy_and_with_a_share_the_teacher_stands_beside(step_of):
    step = step_of(Elr())
    plain = F.cross_entropy(step.student(step.x), step.labels)
    assert Elr(regularisation=0).loss(step).total.item() == pytest.approx(plain.item())
    both = Elr(regularisation=0, teacher_share=0.25, temperature=2.0).loss(step)
    expected = 0.75 * plain + 0.25 * kd_loss(step.student(step.x), step.targets, 2.0)
    assert both.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    q = F.softmax(logits(1), 1)
    assert torch.autograd.gradcheck(lambda s: early_learning_regulariser(clamped_predictions(s.double()), q), logits(0).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e3], ids=["constant", "huge"])
def test_value_and_gradient_are_finite_for_extreme_logits_and_full_agreement(dtype, scale):
    student = (torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale).to(dtype).requires_grad_()
    p = clamped_predictions(student)
    value = early_learning_regulariser(p, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    value.backward()
    assert math.log(CLAMP) - 1e-5 <= value.item() <= 0
    assert torch.isfinite(student.grad).all()


def test_its_averages_survive_a_kill_to_the_bit(tiny, inputs, context, tmp_path, stopping):
    config = TrainingConfig(epochs=3, batch_size=50, learning_rate=0.05)
    memories = []

    class Watched(Elr):
        def auxiliary(self, setting):
            memories.append(super().auxiliary(setting))
            return memories[-1]

    def trained(folder, stops):
        for stop in stops:
            with pytest.raises(stopping.Stopped):
                train(tiny(), Watched(), None, inputs, config, replace(context, folder=folder, progress=stopping(stop)), label="distill")
        network = tiny()
        train(network, Watched(), None, inputs, config, replace(context, folder=folder), label="distill")
        return network.module.state_dict(), memories[-1].q

    weights, q = trained(tmp_path / "whole", [])
    again, its_q = trained(tmp_path / "stopped", [4, 5])
    assert torch.equal(q, its_q)
    assert (q.sum(1) > 0.6).all()  # 1 - 0.7³, every sample seen three times
    assert all(torch.equal(weights[name], again[name]) for name in weights)
