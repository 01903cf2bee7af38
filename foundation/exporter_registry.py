"""torch's table of ONNX translations, read once per process instead of once per export: half of the time of a small network's export.

The one place that reaches into `torch.onnx._internal` (torch 2.13.0 is pinned; the test of this file fails when it moves). The exporter
changes the table only for a `custom_translation_table`, which we never give.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = ONNXRegistry.from_torchlib


@functools.cache
def _read_once(opset_version: int | None = None) -> ONNXRegistry:
    return _read() if opset_version is None else _read(opset_version=opset_version)


@contextmanager
def kept_registry() -> Iterator[None]:
    """Exports within take the table that an earlier one read."""

    def from_torchlib(_cls: type[Any], opset_version: int | None = None) -> ONNXRegistry:
        return _read_once(opset_version)

    with mock.patch.object(ONNXRegistry, "from_torchlib", classmethod(from_torchlib)):
        yield
