import pytest
import torch
from torch import nn

from kdpipe.tasks.networks.mobilenetv2 import mobilenetv2


def final_side(image_size):
    module = mobilenetv2(in_channels=1, classes=10, image_size=image_size, width=0.25).eval()
    seen = []
    module.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    module(torch.zeros(1, 1, image_size, image_size))
    return seen[0]


@pytest.mark.parametrize(("image_size", "side"), [(4, 4), (8, 4), (16, 4), (28, 4), (32, 4), (64, 4), (96, 3), (224, 7)])
def test_images_are_halved_to_about_four_pixels(image_size, side):
    assert final_side(image_size) == side


def test_at_full_width_it_has_the_size_of_the_paper():
    module = mobilenetv2(in_channels=3, classes=1000, image_size=224)

    # Table 4 of the paper: 3.4 M parameters; counted by hand over table 2: 3,504,872.
    assert sum(parameter.numel() for parameter in module.parameters()) == 3_504_872


def test_the_paper_halves_five_times_at_its_own_places():
    module = mobilenetv2(in_channels=3, classes=10, image_size=224)

    strides = [child.stride[0] for child in module.modules() if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3)]
    assert [place for place, stride in enumerate(strides) if stride == 2] == [0, 2, 4, 7, 14]


def test_channels_are_multiples_of_eight():
    module = mobilenetv2(in_channels=3, classes=10, image_size=32, width=0.3)

    assert all(child.out_channels % 8 == 0 for child in module.modules() if isinstance(child, nn.Conv2d))


def test_residuals_stand_only_where_shapes_are_equal():
    blocks = list(mobilenetv2(in_channels=3, classes=10, image_size=32).blocks)

    assert [block.residual for block in blocks].count(True) == 10  # 17 blocks in 7 stages: all but each stage's first
    assert all(block.norm.num_features == block.expand.conv.in_channels for block in blocks if block.residual)
