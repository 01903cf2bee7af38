"""ONNX Runtime on the CPU, and what its other providers (`onnxruntime_xnnpack.py` …) share with it."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import PROVIDERS, Loaded, load_onnxruntime
from kdpipe.targets.observed import Observed
from kdpipe.targets.runtimes.onnxruntime_view import accelerated_view, cpu_view
from kdpipe.targets.runtimes.provider import Provider
from kdpipe.targets.runtimes.runtime import Hint, runtime_version, session_name
from kdpipe.targets.runtimes.session import loaded_by

_ON_CPU = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-xnnpack")


class OnnxRuntime(Provider):
    """The plug-in of one provider; `runtime`: its name in `agent.PROVIDERS`."""

    distribution = "onnxruntime"

    def opening(self, hint: Hint) -> "OnnxRuntimeOpening":
        """How files are opened in this provider."""
        return OnnxRuntimeOpening(self.runtime, self.do, hint)


class OnnxRuntimeOpening:
    """See `Opening`."""

    def __init__(self, runtime: str, do: str, hint: Hint) -> None:
        self.name = session_name(runtime, runtime_version(runtime) or "")
        self.on_cpu = runtime in _ON_CPU
        self._runtime, self._do, self._hint = runtime, do, hint

    def load(self, model: Path, *, threads: int, shape: Sequence[int] | None = None) -> Loaded:
        """See `Opening.load`."""
        provider = PROVIDERS[self._runtime]
        sides = None if shape is None else _sides(model, shape)
        return loaded_by(self._runtime, model, lambda: load_onnxruntime(str(model), threads, self._hint, provider, sides=sides), do=self._do)

    def observe(self, model: Path, *, threads: int, example: Float32Array) -> Observed:
        """See `Opening.observe`."""
        if self._runtime == "onnxruntime":
            return cpu_view(model, threads, self._hint, example)
        return accelerated_view(model, threads, self._hint, PROVIDERS[self._runtime], example)


def _sides(model: Path, shape: Sequence[int]) -> dict[str, int]:
    """The names of the input's free sides, with their lengths in `shape`."""
    given = onnx.load(model, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return {side.dim_param: length for side, length in zip(given, shape, strict=True) if side.dim_param}


plugin = OnnxRuntime("onnxruntime", do="python -m pip install --force-reinstall onnxruntime")
