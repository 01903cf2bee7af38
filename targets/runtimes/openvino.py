"""OpenVINO's CPU plug-in, for .onnx files and IR (.xml), and what its other devices (`openvino_npu.py` …) share with it."""

from pathlib import Path
from typing import Any

from kdpipe.targets.devices.agent import OPENVINO_DEVICES, load_openvino
from kdpipe.targets.explanation import Graph, explanation, timing
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.runtimes.runtime import Hint, runtime_version, session_name
from kdpipe.targets.runtimes.session import LoadedSession, loaded_by

_PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_NOT_COMPUTED = {"Const", "Input", "Output"}
_COMPUTE = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


class OpenVino:
    """The plug-in of one device; `runtime`: its name in `agent.OPENVINO_DEVICES`, `do`: what helps where it is not there."""

    distribution = "openvino"

    def __init__(self, runtime: str, do: str) -> None:
        self.runtime, self.do = runtime, do

    def open(self, model: Path, *, threads: int, hint: Hint) -> LoadedSession:
        """See `Runtime.open`; threads mean nothing on a GPU or an NPU."""
        name = session_name(self.runtime, runtime_version(self.runtime) or "")
        loaded = loaded_by(self.runtime, model, lambda: load_openvino(str(model), threads, hint, OPENVINO_DEVICES[self.runtime]), do=self.do)
        return LoadedSession(name, model, loaded, lambda loaded, example: explanation(name, _graph(loaded.handle), timing(loaded, example)))


def _graph(compiled: Any) -> Graph:
    nodes, compute, leftover, reorders, unfused = [], set(), [], [], []
    quantized_file = any(_told(layer, "layerType") == "FakeQuantize" or "QuantizeLinear" in _told(layer, "originalLayersNames") for layer in _layers(compiled))
    for layer in _layers(compiled):
        operator, name = _told(layer, "layerType"), layer.get_friendly_name()
        precision = _PRECISIONS.get(_told(layer, "runtimePrecision"), _told(layer, "runtimePrecision"))
        originals = [original for original in _told(layer, "originalLayersNames").split(",") if original and original != name]
        kernel = _told(layer, "primitiveType")
        if operator in _COMPUTE:
            compute.add(name)
            if quantized_file and precision != "int8":
                unfused.append(name)
        if operator == "FakeQuantize" and not _fed_by_input(layer):
            leftover.append(name)
        if operator == "Reorder":
            reorders.append(name)
        nodes.append(NodePrecision(name=name, operator=operator, precision=precision, fused=tuple(originals), note=f"kernel {kernel}" if kernel else None))
    return Graph(tuple(nodes), frozenset(compute), tuple(unfused), tuple(leftover), tuple(reorders))


def _layers(compiled: Any) -> list[Any]:
    layers = [layer for layer in compiled.get_runtime_model().get_ordered_ops() if _told(layer, "layerType") not in _NOT_COMPUTED]
    return [layer for layer in layers if not _is_constant(layer)]


def _is_constant(layer: Any) -> bool:
    """Whether it reshapes or converts constants only, which happens once."""
    sources = [layer.input(index).get_source_output().get_node() for index in range(layer.get_input_size())]
    return all(_told(source, "layerType") == "Const" for source in sources)


def _fed_by_input(layer: Any) -> bool:
    source = layer.input(0).get_source_output().get_node()
    while _told(source, "layerType") in ("Reorder", "Reshape", "Transpose"):
        source = source.input(0).get_source_output().get_node()
    return _told(source, "layerType") == "Input"


def _told(layer: Any, key: str) -> str:
    facts = layer.get_rt_info()
    return str(facts[key].astype(str)) if key in facts else ""


plugin = OpenVino("openvino", do="python -m pip install --force-reinstall openvino")
