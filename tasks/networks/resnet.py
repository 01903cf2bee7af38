"""The CIFAR-style ResNet family. Source: He et al. 2015 (arXiv:1512.03385), section 4.2: depth 6n + 2, three stages of n blocks.

Deviations: shortcuts are 1x1 convolutions with BatchNorm by default (option B), since a zero-padded one (option A) ties
channels together that pruning should judge apart; images of 64 pixels and more are halved in the stem, of 128 and more once again.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

_STAGE_CHANNELS = (16, 32, 64)

Shortcut = Literal["conv", "pad"]


def resnet(*, in_channels: int, classes: int, image_size: int, depth: int = 20, width: float = 1.0, shortcut: Shortcut = "conv") -> nn.Module:
    """A ResNet of `depth` 6n + 2 whose stages have 16, 32, 64 times `width` channels; (batch, in_channels, h, w) to (batch, classes).

    `image_size`: the shorter side in pixels; it decides how often the image is halved before the stages.
    `shortcut="pad"` is option A of the paper: no parameters. A state dict of github.com/akamaster/pytorch_resnet_cifar10
    then fits name by name (`conv1`, `bn1`, `layer1.0.conv1`, …, `linear`). ValueError for another depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth = {depth} is not of the form 6n + 2 (8, 14, 20, 32, 44, 56, 110)")
    channels = tuple(max(1, round(stage * width)) for stage in _STAGE_CHANNELS)
    return ResNet(in_channels, classes, blocks, channels, _early_strides(image_size), shortcut)


class ResNet(nn.Module):
    """See `resnet`. `channels` of the three stages; `early_strides` of the stem and of the first stage."""

    def __init__(self, in_channels: int, classes: int, blocks: int, channels: tuple[int, ...], early_strides: tuple[int, int], shortcut: Shortcut) -> None:
        super().__init__()
        stem_stride, first_stride = early_strides
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(channels[0], channels[0], blocks, first_stride, shortcut)
        self.layer2 = _stage(channels[0], channels[1], blocks, 2, shortcut)
        self.layer3 = _stage(channels[1], channels[2], blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The logits, (batch, classes)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.flatten(self.pool(x)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(channels_in, channels, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) to (batch, channels, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(y + self.shortcut(x))
        return result


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, and zero channels on both sides up to `channels`: option A."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - channels_in) // 2
        self.after = channels - channels_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels_in, h, w) to (batch, channels, h / stride, w / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _early_strides(image_size: int) -> tuple[int, int]:
    return (1 if image_size < 64 else 2), (1 if image_size < 128 else 2)


def _stage(channels_in: int, channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))


def _shortcut(channels_in: int, channels: int, stride: int, shortcut: Shortcut) -> nn.Module:
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    if shortcut == "pad":
        return PaddedShortcut(channels_in, channels, stride)
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
