import pytest
import torch
from torch import fx, nn

from kdpipe.foundation.plugins import imported
from kdpipe.foundation.randomness import stream
from kdpipe.tasks.networks.named import NAMES, default_networks, named_network


def built(name, in_channels, image_size, classes=5):
    named = named_network(name, at="[teacher] network")
    return imported(named.factory, at="test")(in_channels=in_channels, classes=classes, image_size=image_size, **named.arguments)


SMALL = ("cnn-small", "cnn-large", "resnet-8", "resnet-20", "resnet-8-x2", "resnet-8-x0.5", "mobilenetv2-0.25", "mobilenetv2-0.5")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("in_channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 24, 40), (2, 5, 7)])
def test_built_in_networks_take_images_of_many_sizes(name, in_channels, height, width):
    module = built(name, in_channels, min(height, width)).eval()

    assert module(torch.rand(2, in_channels, height, width, generator=stream(0, "x"))).shape == (2, 5)


@pytest.mark.parametrize("name", SMALL)
def test_tracing_changes_no_output(name):
    module = built(name, 1, 8).eval()
    x = torch.rand(3, 1, 8, 8, generator=stream(0, "x"))

    assert torch.equal(fx.symbolic_trace(module)(x), module(x))


@pytest.mark.parametrize("name", [*SMALL, "resnet-56", "mobilenetv2-1.0"])
def test_every_module_is_used_once_and_none_drops_out(name):
    traced = fx.symbolic_trace(built(name, 3, 32))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]

    leaves = {name for name, module in traced.named_modules() if not list(module.children())}
    assert len(called) == len(set(called))
    assert set(called) == leaves
    assert not any(isinstance(module, nn.Dropout) for module in traced.modules())


@pytest.mark.parametrize("name", SMALL)
def test_every_convolution_goes_straight_into_a_norm(name):
    traced = fx.symbolic_trace(built(name, 3, 32))
    modules = dict(traced.named_modules())

    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d):
            [user] = node.users
            assert isinstance(modules[user.target], nn.BatchNorm2d)


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_name_is_known(name):
    assert named_network(name, at="x").factory.startswith("kdpipe.tasks.networks.")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet20", "resnet-20"),
        ("resnet-18", "resnet-"),
        ("renset-8", "resnet-8"),
        ("mobilnetv2-0.5", "mobilenetv2-0.5"),
        ("cnn-smal", "cnn-small"),
        ("resnet-20-x0", "resnet-20"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near, problem):
    told = problem(lambda: named_network(name, at="kdpipe.toml:9"))

    assert told.message == f"unknown network {name!r}"
    assert told.at == "kdpipe.toml:9"
    assert told.do.startswith(f"did you mean '{near}")
    assert "package.module:factory" in told.do


def test_a_name_like_no_other_is_answered_with_the_list(problem):
    told = problem(lambda: named_network("x", at="kdpipe.toml:9"))

    assert told.message == "unknown network 'x'"
    assert told.at == "kdpipe.toml:9"
    assert told.do.startswith("known: cnn-small, ")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 96, 96)])
def test_the_default_student_is_much_smaller_than_the_default_teacher(shape):
    teacher, student = (built(name, shape[0], min(shape[1:])) for name in default_networks(shape))

    count = [sum(parameter.numel() for parameter in module.parameters()) for module in (teacher, student)]
    assert count[1] < 0.3 * count[0]
