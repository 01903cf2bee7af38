"""OpenVINO's CPU plug-in, for .onnx files and IR (.xml), and what its other devices (`openvino_npu.py` …) share with it."""

from collections.abc import Sequence
from pathlib import Path

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import OPENVINO_DEVICES, Loaded, load_openvino
from kdpipe.targets.observed import Observed
from kdpipe.targets.runtimes.openvino_view import view
from kdpipe.targets.runtimes.provider import Provider
from kdpipe.targets.runtimes.runtime import Hint, runtime_version, session_name
from kdpipe.targets.runtimes.session import loaded_by

_ATTEMPTS = 4  # at a profile that no other program disturbed


class OpenVino(Provider):
    """The plug-in of one device; `runtime`: its name in `agent.OPENVINO_DEVICES`."""

    distribution = "openvino"

    def opening(self, hint: Hint) -> "OpenVinoOpening":
        """How files are opened on this device."""
        return OpenVinoOpening(self.runtime, self.do, hint)


class OpenVinoOpening:
    """See `Opening`."""

    def __init__(self, runtime: str, do: str, hint: Hint) -> None:
        self.name = session_name(runtime, runtime_version(runtime) or "")
        self.on_cpu = OPENVINO_DEVICES[runtime] == "CPU"
        self._runtime, self._do, self._hint = runtime, do, hint

    def load(self, model: Path, *, threads: int, shape: Sequence[int] | None = None) -> Loaded:
        """See `Opening.load`."""
        device, fixed = OPENVINO_DEVICES[self._runtime], None if shape is None else list(shape)
        return loaded_by(self._runtime, model, lambda: load_openvino(str(model), threads, self._hint, device, shape=fixed), do=self._do)

    def observe(self, model: Path, *, threads: int, example: Float32Array) -> Observed:
        """See `Opening.observe`."""
        seen = Observed(nodes=())
        for _ in range(_ATTEMPTS if self.on_cpu else 1):  # its counters are means, which an interruption stays in: each attempt has fresh ones
            loaded = load_openvino(str(model), threads, self._hint, OPENVINO_DEVICES[self._runtime], profiled=True)
            try:
                seen = view(model, loaded, example)
            except RuntimeError:
                if self.on_cpu:
                    raise
                return seen  # a device whose plug-in has no runtime graph tells nothing of its nodes
            if seen.unsteady is None:
                break
        return seen


plugin = OpenVino("openvino", do="python -m pip install --force-reinstall openvino")
