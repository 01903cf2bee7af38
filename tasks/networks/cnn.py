"""A plain stack of convolution, BatchNorm and ReLU, averaged and classified by one linear layer: no shortcuts, the easiest network to quantize."""

from torch import nn


def cnn(*, in_channels: int, classes: int, image_size: int, channels: list[int], kernel: int = 3) -> nn.Module:
    """One convolution for each of `channels`; (batch, in_channels, h, w) to (batch, classes).

    Layers 2 and 4 halve the image, and for images of 64 pixels and more (`image_size`: the shorter side) the first one too.
    """
    layers: list[nn.Module] = []
    before = in_channels
    for position, after in enumerate(channels):
        layers.append(_layer(before, after, kernel, _stride(position, image_size)))
        before = after
    network = nn.Sequential()
    network.add_module("layers", nn.Sequential(*layers))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("linear", nn.Linear(before, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _layer(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _stride(position: int, image_size: int) -> int:
    halves = position in (1, 3) or (position == 0 and image_size >= 64)
    return 2 if halves else 1
