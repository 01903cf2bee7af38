"""What a runtime is to the rest of kdpipe: it opens a file into a `Session`, a Predictor that can explain itself.

A runtime is one file here whose `plugin` has the form of `Runtime`, or a user's own as `package.module:name`.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from packaging.specifiers import SpecifierSet

from kdpipe.foundation import plugins
from kdpipe.foundation.errors import ConfigError, UnavailableError, VerificationError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import Loaded
from kdpipe.targets.measurements import Explanation

PACKAGE = "kdpipe.targets.runtimes"
Hint = Literal["latency", "throughput"]


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
        """The file, loaded; VerificationError when it does not load, ImportError when the runtime is missing."""
        ...


def runtime_names() -> list[str]:
    """The runtimes that ship, sorted; nothing is imported."""
    return [name for name in plugins.names(PACKAGE) if name != "runtime"]


def runtime_version(runtime: str) -> str | None:
    """The installed version of the runtime's distribution; None when it is not installed. ConfigError: unknown name."""
    try:
        return metadata.version(_found(runtime, at="runtime").distribution)
    except metadata.PackageNotFoundError:
        return None


def require_runtime(runtime: str, versions: str = "", *, at: str = "runtime") -> str:
    """The installed version, when it is in the range `versions`; UnavailableError when it is missing or another."""
    installed, distribution = runtime_version(runtime), _found(runtime, at=at).distribution
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
    plugin = _found(runtime, at=f"runtime of {model.name}")
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


def does_not_load(runtime: str, model: Path, error: Exception) -> VerificationError:
    """The error of a file that the runtime refuses, with the runtime's own words."""
    words = " ".join(str(error).split())[:400]
    return VerificationError(f"the file does not load in {runtime}: {words}", at=model, do="build it again; a file from elsewhere: check it with onnx.checker")


def require_classifier(loaded: Loaded, runtime: str, model: Path) -> None:
    """VerificationError unless the file takes one float32 batch and gives one output."""
    if loaded.input_type != "tensor(float)" or loaded.outputs != 1:
        raise VerificationError(
            f"the file takes {loaded.input_type} and gives {loaded.outputs} outputs; {runtime} is asked to run one float32 input to one output",
            at=model,
            do="export the network alone, from the raw float32 batch to the logits",
        )


def predicted(loaded: Loaded, batch: Float32Array, *, at: str) -> Float32Array:
    """The logits of a batch of any size. A file with a static batch gets it in pieces, the last one filled up with its last sample."""
    _require_valid(loaded, batch, at=at)
    size = loaded.batch
    if size is None or size == len(batch):
        return np.array(loaded.run(np.ascontiguousarray(batch)), dtype=np.float32)
    pieces = []
    for start in range(0, len(batch), size):
        piece = batch[start : start + size]
        filled = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
        pieces.append(np.array(loaded.run(np.ascontiguousarray(filled)), dtype=np.float32)[: len(piece)])
    return np.concatenate(pieces)


def _require_valid(loaded: Loaded, batch: Float32Array, *, at: str) -> None:
    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        got = str(batch.dtype) if isinstance(batch, np.ndarray) else type(batch).__name__
        raise ConfigError(f"the batch is {got}, the model takes float32", at=at, do="convert it: numpy.asarray(batch, dtype=numpy.float32)")
    fits = batch.ndim == 1 + len(loaded.shape) and all(want in (None, got) for want, got in zip(loaded.shape, batch.shape[1:], strict=True))
    if not fits or len(batch) == 0:
        wanted = ", ".join("any" if side is None else str(side) for side in loaded.shape)
        raise ConfigError(
            f"the batch has shape {batch.shape}, the model takes (n, {wanted}) with n >= 1", at=at, do="give samples of the shape that contract.json names"
        )
    if not np.isfinite(batch).all():
        raise ConfigError(
            f"the batch holds {int((~np.isfinite(batch)).sum())} values that are NaN or infinite",
            at=at,
            do="find where they come from; the model takes finite values",
        )


def _found(runtime: str, *, at: str) -> Runtime:
    if ":" not in runtime and runtime not in runtime_names():
        raise ConfigError(f"unknown runtime {runtime!r}", at=at, do=f"known: {', '.join(runtime_names())}; your own: package.module:name")
    plugin: Runtime = plugins.find(PACKAGE, runtime, at=at)
    return plugin
