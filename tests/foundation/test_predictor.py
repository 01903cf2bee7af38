import numpy as np
import torch
from torch import nn

from kdpipe.foundation.predictor import Predictor, TorchPredictor


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def test_a_torch_network_answers_in_evaluation_mode_and_keeps_its_mode_and_statistics():
    network = small_network().train()
    network[1].eval()
    statistics = network[1].running_mean.clone()
    batch = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    predictor = TorchPredictor(network)
    logits = predictor(batch)
    assert isinstance(predictor, Predictor)
    assert logits.shape == (5, 3)
    assert logits.dtype == np.float32
    assert network.training
    assert not network[1].training
    assert torch.equal(network[1].running_mean, statistics)
    network.eval()
    with torch.no_grad():
        assert np.array_equal(logits, network(torch.from_numpy(batch)).numpy())


def test_a_batch_that_does_not_lie_in_order_in_memory_is_taken_as_well():
    predictor = TorchPredictor(small_network())
    batch = np.random.default_rng(0).random((8, 8, 1, 5), dtype=np.float32).T
    assert np.array_equal(predictor(batch), predictor(np.ascontiguousarray(batch)))
