"""The built-in networks by name: `resnet-20`, `resnet-20-x2`, `mobilenetv2-0.5`, `cnn-large`; or a user's `package.module:factory`."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from kdpipe.foundation.errors import ConfigError

DEFAULT_TEACHER = "default-teacher"
DEFAULT_STUDENT = "default-student"

NAMES = (
    "cnn-small",
    "cnn-large",
    "resnet-8",
    "resnet-14",
    "resnet-20",
    "resnet-32",
    "resnet-44",
    "resnet-56",
    "resnet-110",
    "mobilenetv2-0.25",
    "mobilenetv2-0.5",
    "mobilenetv2-1.0",
)
"""What is listed; any `resnet-<6n+2>[-x<width>]` and `mobilenetv2-<width>` can be named."""

_CNN_CHANNELS: Mapping[str, list[JsonValue]] = {"small": [16, 16, 32, 32], "large": [32, 32, 64, 64, 128]}
_RESNET = re.compile(r"resnet-(?P<depth>\d+)(-x(?P<width>\d+(\.\d+)?))?")
_MOBILENET = re.compile(r"mobilenetv2-(?P<width>\d+(\.\d+)?)")


@dataclass(frozen=True)
class NamedNetwork:
    """`factory`: `package.module:name`; `arguments`: those that the name fixes, beside the image's shape and the classes."""

    factory: str
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)


def named_network(name: str, *, at: str) -> NamedNetwork:
    """The factory and arguments that `name` stands for. ConfigError with the nearest name when there is none."""
    if matched := _RESNET.fullmatch(name):
        depth, width = int(matched["depth"]), float(matched["width"] or 1)
        if depth >= 8 and depth % 6 == 2 and width > 0:
            return NamedNetwork("kdpipe.tasks.networks.resnet:resnet", {"depth": depth, "width": width})
    if (matched := _MOBILENET.fullmatch(name)) and float(matched["width"]) > 0:
        return NamedNetwork("kdpipe.tasks.networks.mobilenetv2:mobilenetv2", {"width": float(matched["width"])})
    if name.startswith("cnn-") and (channels := _CNN_CHANNELS.get(name.removeprefix("cnn-"))):
        return NamedNetwork("kdpipe.tasks.networks.cnn:cnn", {"channels": list(channels)})
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown network {name!r}", at=at, do=f"{hint}known: {', '.join(NAMES)}; your own: package.module:factory")


def default_networks(shape: tuple[int, ...]) -> tuple[str, str]:
    """Teacher and student for images of `shape` (channels, height, width) where the user names none; chosen to train on two cores.

    Up to 16 pixels depth is cheap; grey images of 28 pixels are easy for a plain stack; beyond, shortcuts pay.
    """
    channels, *sides = shape
    if min(sides) <= 16 or channels > 1 or min(sides) > 32:
        return "resnet-20", "resnet-8"
    return "cnn-large", "cnn-small"
