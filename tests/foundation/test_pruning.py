import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.networks import InputContract, Network, NetworkSpec, build_network, load_network, save_network
from kdpipe.foundation.pruning import KeptChannels, PruningPlan, replay_


def plan(**layers):
    return PruningPlan(layers={name: KeptChannels(**sides) for name, sides in layers.items()})


def stack():
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("conv", nn.Conv2d(2, 6, 3, padding=1))
    module.add_module("norm", nn.BatchNorm2d(6))
    module.add_module("act", nn.PReLU(6))
    module.add_module("depthwise", nn.Conv2d(6, 6, 3, groups=6))
    module.add_module("flatten", nn.Flatten())
    module.add_module("linear", nn.Linear(24, 5))
    module.norm.running_mean.normal_()
    return module.eval()


def test_what_is_cut_gives_what_it_gave_with_the_channels_zeroed():
    module, kept = stack(), (0, 2, 5)
    columns = tuple(channel * 4 + position for channel in kept for position in range(4))
    cut = copy.deepcopy(module)
    replay_(cut, plan(conv={"outputs": kept}, norm={"outputs": kept}, act={"outputs": kept}, depthwise={"outputs": kept}, linear={"inputs": columns}))
    with torch.no_grad():
        gone = [column for column in range(24) if column not in columns]
        module.linear.weight[:, gone] = 0
        x = torch.rand(3, 2, 4, 4)
        assert torch.allclose(cut(x), module(x), atol=1e-6)
    assert (cut.conv.out_channels, cut.norm.num_features, cut.act.num_parameters) == (3, 3, 3)
    assert (cut.depthwise.in_channels, cut.depthwise.out_channels, cut.depthwise.groups) == (3, 3, 3)
    assert cut.linear.in_features == 12


def test_values_that_stay_do_not_change_and_stay_trainable():
    module = stack()
    whole = module.conv.weight.clone()
    replay_(module, plan(conv={"inputs": (1,), "outputs": (4, 5)}))
    assert torch.equal(module.conv.weight, whole[[4, 5]][:, [1]])
    assert isinstance(module.conv.weight, nn.Parameter)
    assert module.conv.weight.requires_grad
    assert module.conv.weight.is_contiguous()


def test_a_grouped_convolution_is_cut_evenly_in_each_group():
    grouped = nn.Conv2d(4, 8, 1, groups=2, bias=False)
    whole = grouped.weight.clone()
    replay_(module := nn.Sequential(grouped), PruningPlan(layers={"0": KeptChannels(inputs=(1, 2), outputs=(0, 3, 4, 5))}))
    assert torch.equal(module[0].weight, torch.cat([whole[[0, 3]][:, [1]], whole[[4, 5]][:, [0]]]))
    x = torch.rand(1, 2, 3, 3)
    assert module(x).shape == (1, 4, 3, 3)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_two_plans_in_a_row_are_one(data):
    def chosen(width):
        return tuple(sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=1))))

    first_kept = chosen(6)
    second_kept = chosen(len(first_kept))
    first, second = (plan(conv={"outputs": kept}, norm={"outputs": kept}) for kept in (first_kept, second_kept))
    in_a_row, at_once = stack(), stack()
    replay_(in_a_row, first)
    replay_(in_a_row, second)
    replay_(at_once, first.then(second))
    assert all(torch.equal(a, b) for a, b in zip(in_a_row.state_dict().values(), at_once.state_dict().values(), strict=True))


def test_a_plan_composes_with_sides_that_only_one_of_the_two_cuts():
    first = plan(a={"outputs": (0, 2, 4)})
    second = plan(a={"inputs": (1,)}, b={"outputs": (0,)})
    assert first.then(second).layers["a"] == KeptChannels(inputs=(1,), outputs=(0, 2, 4))
    assert first.then(second).layers["b"] == KeptChannels(outputs=(0,))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"missing": {"outputs": (0,)}}, "'missing': there is no such layer"),
        ({"flatten": {"outputs": (0,)}}, "'flatten': a Flatten cannot be cut"),
        ({"conv": {"outputs": (0, 6)}}, "'conv': 2 output channels do not lie in its 6, each once"),
        ({"conv": {"outputs": (1, 1)}}, "'conv': 2 output channels do not lie in its 6, each once"),
        ({"linear": {"inputs": ()}}, "'linear': 0 input channels do not lie in its 24, each once"),
        (
            {"depthwise": {"inputs": (0,), "outputs": (1,)}},
            "'depthwise': a depthwise convolution keeps the same inputs and outputs",
        ),
    ],
    ids=["missing", "not cuttable", "beyond", "twice", "empty", "depthwise"],
)
def test_a_plan_of_another_network_is_refused_by_layer(layers, message):
    with pytest.raises(VerificationError) as caught:
        replay_(stack(), plan(**layers))
    problem = caught.value.problems[0]
    assert problem.message == f"the pruning plan does not fit layer {message}"
    assert problem.at == "network.json"
    assert problem.do == "its factory has changed: build again"


def test_groups_that_would_keep_unequal_shares_are_refused():
    with pytest.raises(VerificationError, match="its 2 groups would keep different numbers of channels"):
        replay_(nn.Sequential(nn.Conv2d(4, 8, 1, groups=2)), PruningPlan(layers={"0": KeptChannels(outputs=(0, 1, 4))}))


def test_a_pruned_network_is_read_from_disk_bit_for_bit(tmp_path):
    kept = (0, 3, 7, 8)
    spec = NetworkSpec(
        factory="kdpipe.tasks.networks.cnn:cnn",
        arguments={"in_channels": 1, "classes": 3, "image_size": 8, "channels": [16, 16]},
        contract=InputContract(shape=(1, 8, 8), labels=("a", "b", "c")),
        mean=(0.5,),
        std=(0.25,),
    )
    whole = build_network(spec, torch.Generator().manual_seed(0))
    names = [name for name, layer in whole.module.named_modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    layers = {names[0]: KeptChannels(outputs=kept), names[1]: KeptChannels(outputs=kept), names[2]: KeptChannels(inputs=kept)}
    pruned = build_network(spec.model_copy(update={"pruning": PruningPlan(layers=layers)}), torch.Generator().manual_seed(0))
    save_network(Network(pruned.spec, pruned.module.eval()), tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_network(tmp_path).module(x), pruned.module(x))
