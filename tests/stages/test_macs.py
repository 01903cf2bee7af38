import torch
import torch_pruning as tp
from torch import nn

from kdpipe.stages.macs import Macs, count_macs, count_parameters, macs_by_kind


def test_convolutions_and_linear_layers_are_counted_by_hand():
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),  # 64 positions * 4 * 2 * 9
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),  # 16 positions * 4 * 9
        nn.Flatten(),
        nn.Linear(64, 5),  # 320
    )
    assert macs_by_kind(module, (2, 8, 8)) == Macs(total=64 * 4 * 2 * 9 + 16 * 4 * 9 + 320, depthwise=16 * 4 * 9)
    assert count_macs(module, (2, 8, 8)) == 64 * 4 * 2 * 9 + 16 * 4 * 9 + 320
    assert count_parameters(module) == (2 * 4 * 9 + 4) + 8 + (4 * 9 + 4) + 64 * 5 + 5
    assert module.training


def test_the_depthwise_share_of_a_network_without_layers_is_none():
    assert macs_by_kind(nn.Flatten(), (2, 8, 8)).depthwise_share == 0


def test_torch_pruning_counts_the_same_but_for_its_normalisations(tiny):
    module = tiny(width=1.0).module
    theirs, _ = tp.utils.count_ops_and_params(module.eval(), torch.zeros(1, 1, 8, 8))
    assert abs(count_macs(module, (1, 8, 8)) / theirs - 1) < 0.03
