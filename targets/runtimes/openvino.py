"""OpenVINO's CPU plug-in, for .onnx files and IR (.xml)."""

from importlib import metadata
from pathlib import Path
from typing import Any, Self

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import Loaded, load_openvino
from kdpipe.targets.explanation import Graph, explanation, timing
from kdpipe.targets.measurements import Explanation, NodePrecision
from kdpipe.targets.runtimes.runtime import Hint, does_not_load, predicted, require_classifier

_PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_NOT_COMPUTED = {"Const", "Input", "Output"}
_COMPUTE = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


class OpenVino:
    """The plug-in."""

    distribution = "openvino"

    def open(self, model: Path, *, threads: int, hint: Hint) -> "OpenVinoSession":
        """See `Runtime.open`."""
        return OpenVinoSession(model, threads, hint)


class OpenVinoSession:
    """A file in OpenVINO; see `Session`."""

    def __init__(self, model: Path, threads: int, hint: Hint) -> None:
        self.name = f"openvino {metadata.version(OpenVino.distribution)} CPU"
        self.model = model
        self._loaded: Loaded | None = _opened(model, threads, hint)
        require_classifier(self._loaded, self.name, model)

    def __call__(self, batch: Float32Array) -> Float32Array:
        """The logits."""
        return predicted(self._open, batch, at=str(self.model))

    def close(self) -> None:
        """Give the model's memory back."""
        self._loaded = None

    def explain(self, example: Float32Array) -> Explanation:
        """Read from the compiled model's runtime graph: each layer's precision and the layers that were fused into it."""
        return explanation(self.name, _graph(self._open.handle), timing(self._open, example))

    @property
    def _open(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError(f"the session of {self.model} is closed")
        return self._loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _opened(model: Path, threads: int, hint: Hint) -> Loaded:
    try:
        return load_openvino(str(model), threads, hint)
    except ImportError:
        raise
    except Exception as error:  # openvino raises RuntimeError and types of its native module
        raise does_not_load("openvino", model, error) from error


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


plugin = OpenVino()
