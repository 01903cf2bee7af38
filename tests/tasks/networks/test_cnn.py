import pytest
import torch
from torch import nn

from kdpipe.tasks.networks.cnn import cnn


def test_one_convolution_for_each_width():
    module = cnn(in_channels=3, classes=7, image_size=32, channels=[8, 12, 16])

    assert [child.out_channels for child in module.modules() if isinstance(child, nn.Conv2d)] == [8, 12, 16]
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("image_size", "side"), [(8, 2), (28, 7), (32, 8), (64, 8)])
def test_layers_two_and_four_halve_and_the_first_of_large_images(image_size, side):
    module = cnn(in_channels=1, classes=10, image_size=image_size, channels=[4, 4, 4, 4])

    assert module.layers(torch.zeros(1, 1, image_size, image_size)).shape == (1, 4, side, side)


def test_another_kernel_keeps_the_size():
    module = cnn(in_channels=1, classes=10, image_size=16, channels=[4], kernel=5)

    assert module.layers(torch.zeros(1, 1, 16, 16)).shape == (1, 4, 16, 16)
