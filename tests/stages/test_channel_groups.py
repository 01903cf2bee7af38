import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from kdpipe.foundation.pruning import replay_
from kdpipe.stages.channel_groups import find_groups, plan_without
from kdpipe.tasks.networks.mobilenetv2 import mobilenetv2
from kdpipe.tasks.networks.resnet import resnet

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make():
    def settled(kind, **keys):
        torch.manual_seed(0)
        module = kind(in_channels=1, classes=10, image_size=8, **keys)
        with torch.no_grad():
            for _ in range(5):
                module.train()(torch.rand(32, 1, 8, 8))
        return module.eval()

    return settled


@pytest.mark.parametrize(("kind", "keys"), [(resnet, {"depth": 8}), (mobilenetv2, {"width": 0.25})], ids=["resnet", "mobilenetv2"])
def test_every_channel_but_the_logits_can_go_and_what_is_cut_equals_what_torch_pruning_cuts(make, kind, keys):
    module = make(kind, **keys)
    before = copy.deepcopy(module.state_dict())
    groups, refused = find_groups(module, X)
    assert list(refused) == ["linear"]
    assert refused["linear"] == "its channels are the network's outputs"
    ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    removed = [(group, list(range(0, group.width, 3))) for group in groups]
    replay_(ours, plan_without(removed, module))
    for group, channels in removed:
        graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=X[:1], verbose=False)
        graph.get_pruning_group(theirs.get_submodule(group.name), tp.prune_conv_out_channels, channels).prune()
    with torch.no_grad():
        assert torch.equal(ours(X), theirs.eval()(X))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_shortcut_that_pads_with_zeros_stays_whole_and_the_rest_can_go(make):
    groups, refused = find_groups(make(resnet, depth=8, shortcut="pad"), X)
    assert {group.name for group in groups} == {"layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}
    assert "linear" in refused
    assert len(refused) >= 2  # the padded sums


class Shuffled(nn.Module):
    """The second half of the channels is added to the first: which goes with which cannot be seen from the layers."""

    def __init__(self):
        super().__init__()
        self.mixed, self.free, self.linear = nn.Conv2d(1, 8, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = self.mixed(x)
        return self.linear(self.free(F.relu(x[:, :4] + x[:, 4:])).mean((2, 3)))


def test_a_users_layer_that_reads_channels_by_number_stays_whole():
    torch.manual_seed(0)
    module = Shuffled().eval()
    groups, refused = find_groups(module, X)
    assert {group.name for group in groups} == {"free"}
    assert refused["linear"] == "its channels are the network's outputs"
    assert "mixed" in refused


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(nn.Conv2d(8, 8, 3, groups=2), "a grouped convolution depends on it"), (nn.GroupNorm(2, 8), "a GroupNorm depends on it")],
    ids=["grouped", "group norm"],
)
def test_what_our_plan_cannot_cut_is_refused_with_the_reason(layer, reason):
    module = nn.Sequential(nn.Conv2d(1, 8, 3), copy.deepcopy(layer), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    groups, refused = find_groups(module, X)
    assert refused["0"] == reason
    assert "0" not in {group.name for group in groups}


def test_an_ignored_layer_keeps_its_outputs_and_may_lose_inputs(make):
    module = make(resnet, depth=8)
    groups, refused = find_groups(module, X, ignored=frozenset({"layer2.0.conv1"}))
    assert refused["layer2.0.conv1"] == "ignored by configuration"
    layers = {(member.layer, member.side) for group in groups for member in group.members}
    assert ("layer2.0.conv1", "outputs") not in layers
    assert ("layer2.0.conv1", "inputs") in layers


def test_flattened_maps_take_all_positions_of_a_channel_with_them():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(64, 3)).eval()
    (group,), _ = find_groups(module, X)
    plan = plan_without([(group, [1])], module)
    assert plan.layers["0"].outputs == (0, 2, 3)
    assert plan.layers["2"].inputs == (*range(16), *range(32, 64))


def test_the_magnitude_score_is_the_groups_squared_weight_over_its_mean():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    (group,), _ = find_groups(module, X)
    by_hand = (module[0].weight.square().sum((1, 2, 3)) + module[4].weight.square().sum(0)) / 2
    assert torch.allclose(group.scores, by_hand / by_hand.mean(), rtol=1e-5)


def test_the_taylor_score_follows_the_gradients():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    gradients = {name: torch.ones_like(value) for name, value in module.named_parameters()}
    gradients["0.weight"][2] = 0
    gradients["4.weight"][:, 2] = 0
    (group,), _ = find_groups(module, X, gradients)
    assert group.scores.argmin() == 2
    assert group.scores[2] == 0
    assert all(parameter.grad is None for parameter in module.parameters())
