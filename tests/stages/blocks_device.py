"""A board whose kernels work in blocks of 16 output channels and in whole fours of input channels: `[devices.X]` of tests, by a law that they know.

It speaks the agent's messages; its nanoseconds follow from the file that it is given. `Board.breaks_after`: comparisons until the link is cut.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper, shape_inference
from pydantic import BaseModel, JsonValue

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.device import Command, identity_of
from kdpipe.targets.devices.messages import BenchRequest, ComparisonDone, Elapsed, Hello, Message, Windows
from kdpipe.targets.measurements import DeviceFacts

OVERHEAD_NS = 3000
NS_PER_MAC = 0.05


def layer_ns(pixels: int, kernel: int, inputs: int, outputs: int, *, depthwise: bool = False) -> float:
    """The law: multiply-accumulates of the blocks that a layer fills."""
    if depthwise:
        return pixels * kernel * 16 * math.ceil(outputs / 16) * NS_PER_MAC * 4 + 100
    return pixels * kernel * 4 * math.ceil(inputs / 4) * 16 * math.ceil(outputs / 16) * NS_PER_MAC + 100


@dataclass
class Board:
    """The device. `asked`: the names of the comparisons' models so far; `slower`: of all its times, as when another program runs."""

    name: str = "board"
    no_latency: str | None = None
    version: str = "1.32.0"
    breaks_after: int | None = None
    slower: float = 1.0
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def connected(self) -> AbstractContextManager[None]:
        return nullcontext()

    def facts(self) -> DeviceFacts:
        return DeviceFacts(
            name=self.name,
            cpu="blocks of 16",
            architecture="x86_64",
            instruction_sets=("avx2", "vnni", "x86-64"),
            cores=1,
            governor=None,
            clock_mhz=None,
            temperature_celsius=None,
            memory_bytes=1 << 30,
            runtimes={"onnxruntime": self.version, "python": "3.11.2"},
        )

    def identity(self) -> Mapping[str, JsonValue]:
        return identity_of(self.facts())

    def ask(self, command: Command, request: Any = None, *, limit_seconds: float) -> Iterator[Message]:
        assert command == "bench"
        assert isinstance(request, BenchRequest)
        yield Hello(kind="hello", protocol=2, runtimes={})
        for comparison in request.comparisons:
            if self.breaks_after == 0:
                raise UnavailableError("the link was cut", at=f"device {self.name}", do="run it again")
            self.breaks_after = None if self.breaks_after is None else self.breaks_after - 1
            self.asked.append(tuple(model.name for model in comparison.models))
            yield Elapsed(kind="elapsed", ns=1_500_000_000)
            for model in comparison.models:
                ns = round(self.slower * file_ns(model.path))
                yield Windows(kind="windows", comparison=comparison.id, model=model.name, ns=((ns,) * 4,) * request.windows)
            warm = {model.name: True for model in comparison.models}
            yield ComparisonDone(kind="comparison", id=comparison.id, warm=warm, clock_mhz=(None, None), temperature_celsius=(None, None))

    def predict(self, request: Any, batches: Iterable[Any], *, limit_seconds: float) -> Iterator[Any]:
        raise NotImplementedError

    def device(self, name: str, project: Path) -> "Board":
        """Settings and device in one."""
        return self


def file_ns(path: Path) -> float:
    """What the board takes for a file."""
    model = onnx.load(path)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*graph.value_info, *graph.output)}
    made_by = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    total = float(OVERHEAD_NS)
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = constants[made_by[node.input[1]].input[0] if node.input[1] in made_by else node.input[1]]
            outputs, inputs, *kernel = weight.shape
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            pixels = math.prod(sizes[node.output[0]][2:])
            total += layer_ns(pixels, math.prod(kernel), inputs, outputs, depthwise=groups > 1)
        elif node.op_type == "Add":
            total += 0.1 * math.prod(sizes[node.output[0]])
    return total


class BoardSettings(BaseModel, extra="forbid", frozen=True):
    """`[devices.X] kind = "blocks_device:BoardSettings"`."""

    kind: str = "blocks_device:BoardSettings"
    emulated: bool = False

    def device(self, name: str, project: Path) -> Board:
        return Board(name, no_latency="an emulated CPU has no latency" if self.emulated else None)
