"""What the int8 file answered, sample by sample: the part of a build's evidence that lets two bundles be compared in pairs.

`answers.npz` in a bundle: for each runtime `int8/<runtime>/clean`, `robust`, `attack/<name>`, `corruption/<name>-<severity>` (bool) and `confidence`,
`nll`, `brier` (float32, of the clean answers), beside them the samples' indices and digest, as `stages/score.py` leaves them.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import VerificationError
from kdpipe.robustness.calibration import Confidences
from kdpipe.robustness.intervals import BoolArray
from kdpipe.stages.score import CORRECT_FILE, GRADED, SAMPLES_DIGEST

ANSWERS_FILE = "answers.npz"

_SHIPPED = "int8/"
_SHARED = ("indices/", SAMPLES_DIGEST)


@dataclass(frozen=True)
class Answers:
    """The file's answers in one runtime. `graded` None: the build is older than these figures; `indices`: by question, of the judged split."""

    runtime: str
    correct: Mapping[str, BoolArray]
    graded: Confidences | None
    indices: Mapping[str, npt.NDArray[np.int64]]
    digest: str | None

    def indices_of(self, question: str) -> npt.NDArray[np.int64] | None:
        """The samples behind `correct[question]`; None where they were not written down. `clean`: the whole split."""
        kind = question.partition("/")[0]
        if kind == "clean":
            return np.arange(len(self.correct[question]))
        fitting = (indices for name, indices in self.indices.items() if (name == "corruption") == (kind == "corruption"))
        return next((indices for indices in fitting if len(indices) == len(self.correct[question])), None)


def shipped_answers(score_export: Path) -> bytes:
    """The content of `answers.npz`, taken from the answers that the step left; equal answers give equal bytes."""
    arrays = {name: array for name, array in _arrays(score_export / CORRECT_FILE).items() if name.startswith((_SHIPPED, *_SHARED))}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes any keyword for its own flag
    return buffer.getvalue()


def read_answers(path: Path) -> dict[str, Answers]:
    """The answers by runtime (`onnxruntime 1.32.0 CPU`); VerificationError where the file cannot be read."""
    arrays = _arrays(path)
    indices = {name.removeprefix("indices/"): array for name, array in arrays.items() if name.startswith("indices/")}
    digest = arrays[SAMPLES_DIGEST].tobytes().hex() if SAMPLES_DIGEST in arrays else None
    found = {}
    for runtime in dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith(_SHIPPED)):
        own = {name.removeprefix(f"{_SHIPPED}{runtime}/"): array for name, array in arrays.items() if name.startswith(f"{_SHIPPED}{runtime}/")}
        correct = {name: array for name, array in own.items() if array.dtype == np.bool_}
        found[runtime] = Answers(runtime, correct, _graded(own), indices, digest)
    return found


def _graded(own: Mapping[str, npt.NDArray[Any]]) -> Confidences | None:
    if not all(name in own for name in ("clean", *GRADED)):
        return None
    confidence, nll, brier = (own[name].astype(np.float64) for name in GRADED)
    return Confidences(own["clean"], confidence, nll, brier, np.full(len(nll), np.nan))


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError) as error:
        raise VerificationError(f"cannot be read as per-sample answers: {error}", at=path, do="copy the bundle again, or run kdpipe build") from error
