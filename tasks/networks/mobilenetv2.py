"""MobileNetV2 for small images. Source: Sandler et al. 2018 (arXiv:1801.04381), table 2.

Deviation: the image is halved as often as leaves about 4 pixels of side (32: three times, 8: once; 224: five times as in the
paper), the late layers first; the paper's five halvings would leave one pixel of a 32x32 image.
"""

import math

from torch import Tensor, nn

_STEM = 32
_LAST = 1280
_STAGES = ((1, 16, 1, False), (6, 24, 2, True), (6, 32, 3, True), (6, 64, 4, True), (6, 96, 3, False), (6, 160, 3, True), (6, 320, 1, False))
"""Expansion, channels, blocks, and whether the paper halves the image there."""

_HALVINGS = 5  # the stem's and those of four stages
_FINAL_SIDE = 4
_DIVISOR = 8


def mobilenetv2(*, in_channels: int, classes: int, image_size: int, width: float = 1.0) -> nn.Module:
    """A MobileNetV2 with `width` times the paper's channels; (batch, in_channels, h, w) to (batch, classes).

    `image_size`: the shorter side in pixels; it decides how often the image is halved.
    """
    return MobileNetV2(in_channels, classes, width, _halvings(image_size))


class MobileNetV2(nn.Module):
    """See `mobilenetv2`. `halvings`: 0 to 5."""

    def __init__(self, in_channels: int, classes: int, width: float, halvings: int) -> None:
        super().__init__()
        channels = _scaled(_STEM, width)
        self.stem = _ConvNormAct(in_channels, channels, 3, stride=2 if halvings == _HALVINGS else 1)
        blocks: list[nn.Module] = []
        to_come = _HALVINGS - 1
        for expansion, stage_channels, count, halves in _STAGES:
            stride = 2 if halves and to_come <= halvings else 1
            to_come -= halves
            for position in range(count):
                channels_out = _scaled(stage_channels, width)
                blocks.append(InvertedResidual(channels, channels_out, expansion, stride if position == 0 else 1))
                channels = channels_out
        self.blocks = nn.Sequential(*blocks)
        last = _scaled(_LAST, max(1.0, width))  # the paper keeps the last layer's width for multipliers below 1
        self.last = _ConvNormAct(channels, last, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.linear.weight, 0, 0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The logits, (batch, classes)."""
        logits: Tensor = self.linear(self.flatten(self.pool(self.last(self.blocks(self.stem(x))))))
        return logits


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise, project; added to its input where the shapes are equal. No activation after the projection."""

    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = _ConvNormAct(channels_in, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNormAct(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) to (batch, channels, h / stride, w / stride)."""
        y: Tensor = self.norm(self.project(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class _ConvNormAct(nn.Module):
    def __init__(self, channels_in: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.norm(self.conv(x)))
        return result


def _halvings(image_size: int) -> int:
    return min(max(round(math.log2(image_size / _FINAL_SIDE)), 0), _HALVINGS)


def _scaled(channels: int, width: float) -> int:
    """`channels * width` to the nearest multiple of 8, never more than a tenth below it."""
    exact = channels * width
    rounded = max(_DIVISOR, int(exact + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded + _DIVISOR if rounded < 0.9 * exact else rounded
