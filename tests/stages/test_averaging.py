import torch
from torch import nn

from kdpipe.stages.averaging import average_, average_equally_, averaged_copy, settle_norms_


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


def test_the_equal_average_is_the_mean_of_all_networks_whatever_it_began_as():
    average = averaged_copy(network(99.0))
    for count, value in enumerate((1.0, 2.0, 6.0), 1):
        average_equally_(average, network(value), count)
    assert torch.allclose(average[0].weight, torch.full((2, 2), 3.0))
    assert torch.allclose(average[1].running_mean, torch.full((2,), 3.0))


def test_settled_norms_have_the_statistics_of_the_samples_and_nothing_else_moves():
    module = averaged_copy(network(2.0))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    settle_norms_(module, [x[:32], x[32:]])
    with torch.no_grad():
        hidden = module[0](x)
    assert torch.allclose(module[1].running_mean, hidden.mean(0), atol=1e-5)
    assert torch.allclose(module[1].running_var, torch.stack([part.var(0) for part in hidden.split(32)]).mean(0), atol=1e-5)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.running_mean", "1.running_var"}
    assert not any(layer.training for layer in module.modules())


class Deaf(nn.Module):
    """Its BatchNorm does not run in training mode, as in a twin whose statistics are frozen."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.norm.running_mean.fill_(5.0)

    def forward(self, x):
        return x


def test_norms_that_do_not_run_keep_their_statistics():
    module = Deaf()
    settle_norms_(module, [torch.randn(8, 2)])
    assert torch.equal(module.norm.running_mean, torch.full((2,), 5.0))
