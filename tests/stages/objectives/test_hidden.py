import torch
from torch import nn

from kdpipe.stages.objectives.hidden import stage_ends, watched


def test_a_stage_ends_with_the_last_module_of_its_spatial_size(tiny):
    ends = stage_ends(tiny().module.eval(), torch.rand(2, 1, 8, 8))
    assert ends == {"body.layer1": (2, 4, 8, 8), "body.layer2": (2, 8, 4, 4), "body.layer3": (2, 16, 2, 2)}


def test_what_runs_before_the_first_weights_is_no_stage():
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    assert list(stage_ends(network, torch.rand(2, 1, 8, 8))) == ["2"]


def test_watching_keeps_outputs_with_their_graph_and_leaves_no_hook():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with watched(network, ["0"]) as outputs:
        network(torch.rand(2, 3))
    assert outputs["0"].requires_grad
    assert not network[0]._forward_hooks
