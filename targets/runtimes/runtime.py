"""What a runtime is to the rest of kdpipe: it opens a file into a `Session`, a Predictor that can explain itself.

A runtime is one file here whose `plugin` has the form of `Runtime`, or a user's own as `package.module:name`. Each provider of ONNX Runtime and
each device of OpenVINO is a runtime by itself (`onnxruntime-xnnpack`, `openvino-npu`): what a figure was measured in is one name.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol, Self

from packaging.specifiers import SpecifierSet

from kdpipe.foundation import plugins
from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices import agent
from kdpipe.targets.measurements import Explanation

PACKAGE = "kdpipe.targets.runtimes"
Hint = Literal["latency", "throughput"]

_TITLES = {"tensorrt": "TensorRT", "openvino": "OpenVINO"}


class Session(Protocol):
    """A file, loaded. Called with float32 (n, *shape) for any n >= 1 it gives float32 logits (n, classes); deterministic.

    ConfigError for a batch of another shape or type, or with a value that is not finite.
    """

    name: str
    """`onnxruntime 1.32.0 CPU`"""

    def __call__(self, batch: Float32Array) -> Float32Array:
        """The logits of a batch of any size."""
        ...

    def close(self) -> None:
        """Give the model's memory back; a second call does nothing."""
        ...

    def explain(self, example: Float32Array) -> Explanation:
        """What the runtime made of the file, node by node, timed on `example` (n >= 1 real samples)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Runtime(Protocol):
    """A way to run files. `distribution`: the package whose version counts."""

    distribution: str

    def open(self, model: Path, *, threads: int, hint: Hint) -> Session:
        """The file, loaded. VerificationError when it does not load, UnavailableError when the provider or device is not there, never another
        in its place; ImportError when the runtime is missing.
        """
        ...


def runtime_names() -> list[str]:
    """The runtimes that ship, sorted; nothing is imported."""
    return [name for name in plugins.names(PACKAGE) if name != "runtime"]


def runtime_version(runtime: str) -> str | None:
    """The installed version of the runtime's distribution; None when it is not installed. ConfigError: unknown name."""
    distribution = found_runtime(runtime, at="runtime").distribution
    if distribution in agent.DISTRIBUTIONS:  # published under several names
        return agent.installed(distribution)
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def what_helps(runtime: str, versions: str = "") -> str:
    """What to do where a runtime is not there: the command that installs it, or for a provider or device what it needs."""
    plugin = found_runtime(runtime, at="runtime")
    beside = runtime != plugin.distribution and ":" not in runtime
    return str(getattr(plugin, "do", "")) if beside else f"python -m pip install '{plugin.distribution}{versions}'"


def session_name(runtime: str, version: str) -> str:
    """What figures are filed under: `onnxruntime 1.32.0 CPU`, `onnxruntime 1.32.0 XNNPACK`, `openvino 2026.4.1 NPU`."""
    name, _, beside = runtime.partition("-") if ":" not in runtime else (runtime, "", "")
    return f"{name} {version} {_TITLES.get(beside, beside.upper() or 'CPU')}"


def runtime_of(session: str) -> str:
    """The runtime in what figures are filed under: `onnxruntime` of `onnxruntime 1.32.0 XNNPACK`."""
    return session.split(maxsplit=1)[0]


def require_runtime(runtime: str, versions: str = "", *, at: str = "runtime") -> str:
    """The installed version, when it is in the range `versions`; UnavailableError when it is missing or another."""
    installed, distribution = runtime_version(runtime), found_runtime(runtime, at=at).distribution
    wanted = f"{distribution}{versions}"
    if installed is None:
        raise UnavailableError(f"the runtime {runtime} is not installed", at=at, do=f"python -m pip install '{wanted}'")
    if not SpecifierSet(versions).contains(installed, prereleases=True):
        raise UnavailableError(f"{distribution} {installed} is installed, {versions} is needed", at=at, do=f"python -m pip install '{wanted}'")
    return installed


def open_session(runtime: str, model: Path, *, threads: int = 1, hint: Hint = "latency", versions: str = "") -> Session:
    """The file in the runtime, ready to be called.

    Raises ConfigError (unknown runtime, no such file), UnavailableError (runtime missing or not in the range
    `versions`), VerificationError (the file does not load, or is not one float32 input to one output of logits).
    """
    plugin = found_runtime(runtime, at=f"runtime of {model.name}")
    require_runtime(runtime, versions, at=str(model))
    if not model.is_file():
        raise ConfigError("no such model file", at=model, do="check the path")
    try:
        return plugin.open(model, threads=threads, hint=hint)
    except ImportError as error:
        raise UnavailableError(
            f"the runtime {runtime} is installed but cannot be imported: {error}",
            at=str(model),
            do=f"python -m pip install --force-reinstall {plugin.distribution}",
        ) from error


def found_runtime(runtime: str, *, at: str = "runtime") -> Runtime:
    """The plug-in of this name, or the user's own; nothing is loaded yet. ConfigError: unknown name."""
    if ":" not in runtime and runtime not in runtime_names():
        raise ConfigError(f"unknown runtime {runtime!r}", at=at, do=f"known: {', '.join(runtime_names())}; your own: package.module:name")
    plugin: Runtime = plugins.find(PACKAGE, runtime, at=at)
    return plugin
