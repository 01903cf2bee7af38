"""What the sessions of all runtimes have in common: batches of any size, checked; closing; the `with` statement."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from kdpipe.foundation.errors import ConfigError, UnavailableError, VerificationError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import Loaded, NotThereError
from kdpipe.targets.measurements import Explanation

Explain = Callable[[Loaded, Float32Array], Explanation]


class LoadedSession:
    """A `Session` of a file that is loaded. A runtime of your own hands over what it loaded, and has all that the contract asks for."""

    def __init__(self, name: str, model: Path, loaded: Loaded, explain: Explain | None = None) -> None:
        """`name`: `onnxruntime 1.32.0 CPU`; `explain`: see `Session.explain`, None where the runtime tells nothing of itself.

        VerificationError unless the file takes one float32 batch and gives one output.
        """
        self.name, self.model = name, model
        self._loaded: Loaded | None = loaded
        self._explain = explain
        if loaded.input_type != "tensor(float)" or loaded.outputs != 1:
            raise VerificationError(
                f"the file takes {loaded.input_type} and gives {loaded.outputs} outputs; {name} is asked to run one float32 input to one output",
                at=model,
                do="export the network alone, from the raw float32 batch to the logits",
            )

    def __call__(self, batch: Float32Array) -> Float32Array:
        """The logits of a batch of any size. A file with a static batch gets it in pieces, the last one filled up with its last sample."""
        loaded = self._open
        _require_valid(loaded, batch, at=str(self.model))
        size = loaded.batch
        if size is None or size == len(batch):
            return self._run(loaded, batch)
        pieces = []
        for start in range(0, len(batch), size):
            piece = batch[start : start + size]
            filled = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
            pieces.append(self._run(loaded, filled)[: len(piece)])
        return np.concatenate(pieces)

    def close(self) -> None:
        """Give the model's memory back; a second call does nothing."""
        self._loaded = None

    def explain(self, example: Float32Array) -> Explanation:
        """See `Session.explain`."""
        loaded = self._open
        _require_valid(loaded, example, at=str(self.model))
        if self._explain is None:
            return Explanation(runtime=self.name, nodes=(), int8_share=None)
        return self._explain(loaded, example)

    def _run(self, loaded: Loaded, batch: Float32Array) -> Float32Array:
        try:
            return np.array(loaded.run(np.ascontiguousarray(batch)), dtype=np.float32)
        except Exception as error:  # as when a file is loaded: types of its own
            words = " ".join(str(error).split())[-400:]
            raise VerificationError(
                f"{self.name} loads the file but cannot run it: {words}", at=self.model, do="kdpipe targets check FILE names what a runtime does not take"
            ) from error

    @property
    def _open(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError(f"the session of {self.model} is closed")
        return self._loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def loaded_by(runtime: str, model: Path, load: Callable[[], Loaded], *, do: str) -> Loaded:
    """What `load` loads. UnavailableError where it says that something is not there (`do`: what helps), VerificationError where it refuses the file."""
    try:
        return load()
    except ImportError:
        raise
    except NotThereError as error:
        raise UnavailableError(str(error), at=model, do=do) from error
    except Exception as error:  # runtimes raise a dozen types of their own, without a common base
        raise does_not_load(runtime, model, error) from error


def does_not_load(runtime: str, model: Path, error: Exception) -> VerificationError:
    """The error of a file that the runtime refuses, with the runtime's own words."""
    words = " ".join(str(error).split())[:400]
    return VerificationError(f"the file does not load in {runtime}: {words}", at=model, do="build it again; a file from elsewhere: check it with onnx.checker")


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
