import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.pruning import replay_
from kdpipe.stages.channel_groups import find_groups, plan_without
from kdpipe.stages.latency_search import lowest
from kdpipe.stages.layer_calls import layer_calls, prunable_calls


class Shared(nn.Module):
    """One convolution called twice, an addition, a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding="same")
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.beside = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.twice(self.twice(x).relu()) + x
        return self.head(torch.cat([y, self.beside(y)], 1).mean((2, 3)))


class Depthwise(nn.Module):
    """Expand, convolve depthwise, project, twice; the second time beside a shortcut."""

    def __init__(self):
        super().__init__()
        self.first = self._block(1, 8)
        self.second = self._block(8, 8)
        self.head = nn.Linear(8, 10)

    @staticmethod
    def _block(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(), nn.Conv2d(12, outputs, 1))

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(x)).mean((2, 3)))


@pytest.fixture
def networks(tiny):
    return {"residual": tiny(width=1.0).module, "depthwise": Depthwise(), "shared": Shared()}


def shapes_of(calls):
    return [call.shape.name for call in calls]


def test_a_residual_network_has_its_convolutions_additions_and_head(networks):
    names = shapes_of(layer_calls(networks["residual"], (1, 8, 8)))
    assert names[:4] == [
        "conv 3x3 padding 1x1, 1 → 16, on 8x8",
        "conv 3x3 padding 1x1, 16 → 16, on 8x8",
        "conv 3x3 padding 1x1, 16 → 16, on 8x8",
        "add 16 on 8x8",
    ]
    assert "conv 1x1 stride 2x2 padding 0x0, 16 → 32, on 8x8" in names
    assert names[-1] == "linear 64 → 10"
    assert sum(name.startswith("add") for name in names) == 3


def test_a_layer_that_is_called_twice_is_there_twice(networks):
    calls = layer_calls(networks["shared"], (1, 8, 8))
    assert [call.layer for call in calls] == ["stem", "twice", "twice", "twice", "beside", "head"]  # the addition is of what `twice` makes
    assert calls[0].shape.padding == (1, 1)


def test_a_linear_layer_on_tokens_counts_each_of_them():
    calls = layer_calls(nn.Sequential(nn.Unflatten(1, (4, 16)), nn.Linear(16, 8), nn.Flatten(), nn.Linear(32, 10)), (64,))
    assert [(call.shape.name, call.times) for call in calls] == [("linear 16 → 8", 4), ("linear 32 → 10", 1)]


@pytest.mark.parametrize("name", ["residual", "depthwise", "shared"])
def test_the_widths_foretold_are_those_of_the_network_that_was_cut(name, networks):
    module = networks[name]
    x = torch.rand(4, 1, 8, 8)
    groups, _ = find_groups(module, x)
    assert groups
    calls = prunable_calls(layer_calls(module, (1, 8, 8)), groups, module)
    removed = tuple(group.width // 2 if number % 2 else group.width // 4 for number, group in enumerate(groups))
    replay_(module, plan_without(lowest(groups, removed), module))
    assert [call.shape(removed).name for call in calls] == shapes_of(layer_calls(module, (1, 8, 8)))


def test_without_cuts_every_call_is_as_it_is(networks):
    calls = layer_calls(networks["depthwise"], (1, 8, 8))
    assert [call.shape(()) for call in prunable_calls(calls, (), networks["depthwise"])] == [call.shape for call in calls]


def test_a_network_that_cannot_be_followed_is_refused_as_quantization_refuses_it():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match="the network cannot be traced"):
        layer_calls(Deciding(), (4,))
