import pytest
import torch
from torch import nn

from kdpipe.stages.memory_format import channels_last, has_convolutions


def fail_within(*modules):
    """Raises inside, after looking at the layout."""
    with channels_last(*modules):
        assert modules[0][0].weight.is_contiguous(memory_format=torch.channels_last)
        raise ArithmeticError


def test_networks_with_convolutions_are_channels_last_meanwhile_also_when_it_fails():
    convolutional, linear = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Linear(3, 4))
    weight = convolutional[0].weight.clone()
    with pytest.raises(ArithmeticError):
        fail_within(convolutional, linear)
    assert torch.equal(convolutional[0].weight, weight)
    assert convolutional[0].weight.is_contiguous()
    assert has_convolutions(convolutional)
    assert not has_convolutions(linear)
