import torch
from torch import nn

from kdpipe.stages.averaging import average_, averaged_copy


def network(value):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
        module[1].running_mean.fill_(value)
        module[1].num_batches_tracked.fill_(int(value))
    return module


def test_weights_and_batchnorm_statistics_are_averaged_and_counters_copied():
    average = averaged_copy(network(0.0))
    average_(average, network(10.0), 0.9, steps=1000)
    assert torch.allclose(average[0].weight, torch.full((2, 2), 1.0))
    assert torch.allclose(average[1].running_mean, torch.full((2,), 1.0))
    assert average[1].num_batches_tracked == 10


def test_with_decay_nought_the_average_is_the_network():
    average, module = averaged_copy(network(0.0)), network(10.0)
    average_(average, module, 0.0, steps=1000)
    assert all(torch.equal(a, b) for a, b in zip(average.state_dict().values(), module.state_dict().values(), strict=True))


def test_a_short_training_is_not_held_at_its_start():
    average = averaged_copy(network(0.0))
    average_(average, network(11.0), 0.999, steps=1)  # decay (1 + 1) / (10 + 1)
    assert torch.allclose(average[0].weight, torch.full((2, 2), 9.0))


def test_the_average_is_frozen_and_a_copy():
    module = network(1.0)
    average = averaged_copy(module)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not average.training
    assert module.training
    assert average[0].weight is not module[0].weight
