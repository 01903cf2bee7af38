import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.normalize import Normalized
from kdpipe.foundation.quantization.tracing import traced


class Deciding(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 2, 1), Deciding())

    def forward(self, x):
        return self.inner(x)


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Own(nn.Conv2d):
    """A subclass that only adds settings."""


class Changed(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_network_that_decides_by_values_is_refused_with_the_module_and_a_way_out():
    with pytest.raises(ConfigError) as caught:
        traced(Hiding())
    (problem,) = caught.value.problems
    assert problem.message.startswith("the network cannot be traced: TraceError: symbolically traced variables cannot be used as inputs to control flow")
    assert problem.at.endswith("Hiding, in its module 'inner.1'")
    assert problem.do == "write forward so that torch.fx can follow it: no decision by a tensor's values or by the batch (`if x.sum() > 0`), only by settings"


def test_a_network_with_two_inputs_is_refused():
    with pytest.raises(ConfigError) as caught:
        traced(Two())
    (problem,) = caught.value.problems
    assert problem.message == "the network takes 2 inputs, one tensor is needed"
    assert problem.at.endswith("Two")
    assert problem.do == "give the other inputs of forward fixed values in its constructor"


def test_the_graph_computes_what_the_network_computes(network, kind, samples):
    module = network(kind)
    assert torch.equal(traced(module)(samples(4)), module(samples(4)))


def test_hooks_on_containers_see_what_they_saw_on_the_network(network, samples):
    def outputs(module):
        seen = {}
        for name in ("body", "body.stem", "body.block"):
            module.get_submodule(name).register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.clone()))
        module(samples(4))
        return seen

    expected = outputs(network("residual"))
    found = outputs(traced(network("residual")))
    assert list(found) == ["body.stem", "body.block", "body"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_subclass_that_computes_the_same_counts_as_the_layer_and_another_one_is_followed():
    same = traced(Normalized(nn.Sequential(Own(1, 2, 1)), (0.0,), (1.0,), 3))
    other = traced(Normalized(nn.Sequential(Changed(1, 2, 1)), (0.0,), (1.0,), 3))
    assert "body.0" in [node.target for node in same.graph.nodes if node.op == "call_module"]
    assert torch.conv2d in [node.target for node in other.graph.nodes]
