"""`kdpipe explain` as a function: what runtimes make of a file, and why int8 is, or is not, faster than float here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no stubs
from pydantic import BaseModel

from kdpipe.foundation.errors import ConfigError, KdpipeError, UnavailableError, VerificationError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.foreign_files import of_the_user
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.store import HOME
from kdpipe.pipeline.verify import whole_manifest
from kdpipe.stages.bench import FILES
from kdpipe.targets.explanation import why_not_faster
from kdpipe.targets.lint.reading import read_onnx_file
from kdpipe.targets.measurements import Explanation
from kdpipe.targets.runtimes.runtime import open_session, runtime_version

DEFAULT_RUNTIMES = ("onnxruntime", "openvino")
_SAMPLES = 16


class Explained(BaseModel, extra="forbid", frozen=True):
    """`against`: the float file, None where there is none; `inputs`: what it was run on; `not_asked`: runtime → why it was left out."""

    model: str
    against: str | None
    inputs: str
    explanations: tuple[Explanation, ...]
    not_asked: dict[str, str] = {}


def explain(subject: Path, *, runtimes: Sequence[str] = (), against: Path | None = None, threads: int = 1, inputs: Path | None = None) -> Explained:
    """What each runtime makes of a bundle's file, an .onnx file, or IR (.xml, in OpenVINO).

    `runtimes`: none named: the bundle's, else ONNX Runtime and OpenVINO, those that are installed. `against`: the float file of the same network; of a bundle
    that its project's store still holds it is found. `inputs`: an .npy of float32 samples; else noise in the range of the contract beside the file.
    A runtime that was not named and does not take the file is left out, where another does.
    Raises ConfigError (no such file, one that is no model, samples that do not fit), UnavailableError (a named runtime, or all), VerificationError
    (a file does not load or run).
    """
    model, named, beside = _located(subject)
    against = against or beside
    if against is not None and not against.is_file():
        raise ConfigError("no such model file", at=against, do="check the path of the float file")
    example, source = _example(model, inputs)
    asked = list(runtimes) or ([*named] if model.suffix == ".onnx" else ["openvino"])
    explanations, left_out = [], {}
    refused: KdpipeError | None = None
    for runtime in asked:
        if not runtimes and runtime_version(runtime) is None:
            left_out[runtime] = "not installed"
            continue
        try:
            explanations.append(_explanation(runtime, model, against, example, threads))
        except (UnavailableError, VerificationError) as error:
            if isinstance(error, VerificationError) and model == subject and model.suffix == ".onnx":
                _require_onnx(model)
            if runtimes:
                raise
            left_out[runtime] = error.problems[0].message
            refused = error if isinstance(error, VerificationError) else refused
    if not explanations and refused is not None:
        raise refused
    if not explanations:
        raise UnavailableError(f"no runtime is here: {', '.join(asked)}", at=model, do="python -m pip install onnxruntime")
    return Explained(model=str(model), against=str(against) if against else None, inputs=source, explanations=tuple(explanations), not_asked=left_out)


def _explanation(runtime: str, model: Path, against: Path | None, example: Float32Array, threads: int) -> Explanation:
    if against is not None:
        return why_not_faster(runtime, model, against, example, threads=threads)
    with open_session(runtime, model, threads=threads) as session:
        session(example[:1])  # it runs at all, before anything is timed
        return session.explain(example)


def _located(subject: Path) -> tuple[Path, Sequence[str], Path | None]:
    """The model, the runtimes that it is for, and the float file of its build where the store has it."""
    if not subject.is_dir():
        if not subject.is_file():
            raise ConfigError("no such file or bundle", at=subject, do="name a bundle's folder, an .onnx file, or an IR's .xml")
        return subject, DEFAULT_RUNTIMES, None
    if not (subject / MANIFEST_FILE).is_file():
        raise ConfigError("the folder is no bundle: it has no manifest.json", at=subject, do="name a folder that kdpipe build wrote, or an .onnx file")
    manifest = whole_manifest(subject)
    if manifest.variants:
        parts = " or ".join(str(subject / name) for name in manifest.variants)
        raise ConfigError("the bundle has several variants", at=subject, do=f"name one of them: {parts}")
    steps = json.loads((subject / MANIFEST_FILE).read_text()).get("steps", {})
    exported = steps.get(f"export@{manifest.target}", "")
    kept = subject.resolve().parents[2] / HOME / "store" / exported / FILES["float"] if exported and len(subject.resolve().parents) > 2 else None
    return subject / FILES["int8"], manifest.runtimes or DEFAULT_RUNTIMES, kept if kept is not None and kept.is_file() else None


def _example(model: Path, inputs: Path | None) -> tuple[Float32Array, str]:
    """Samples to run on, and what they are."""
    if inputs is not None:
        try:
            samples = np.load(inputs, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the samples cannot be read: {error}", at=inputs, do="save them with numpy.save: float32, the batch first") from error
        if samples.dtype != np.float32 or samples.ndim < 2 or len(samples) == 0:
            raise ConfigError(f"the samples are {samples.dtype} {samples.shape}", at=inputs, do="save float32 samples, the batch first")
        return samples, str(inputs)
    low, high = _range(model)
    noise = numpy_stream(0, "explain/example").random((_SAMPLES, *_shape(model)), dtype=np.float32)
    return (low + (high - low) * noise).astype(np.float32), f"noise in [{low:g}, {high:g}]"


def _shape(model: Path) -> tuple[int, ...]:
    """Of one sample."""
    contract = model.with_name("contract.json")
    if contract.is_file():
        sides = json.loads(contract.read_text())["inputs"][0]["shape"][1:]
    elif model.suffix == ".onnx":
        given = _inputs(model)
        sides = [side.dim_value or None for side in given[0].type.tensor_type.shape.dim][1:] if given else []
    else:
        raise ConfigError("the shape of a sample is not known", at=model, do="give samples: --inputs samples.npy")
    if not sides or not all(isinstance(side, int) for side in sides):
        raise ConfigError("the input has free sides besides the batch", at=model, do="give samples: --inputs samples.npy")
    return tuple(sides)


def _inputs(model: Path) -> Sequence[Any]:
    """What the graph takes; ConfigError where the file is no ONNX."""
    try:
        given: Sequence[Any] = onnx.load(model, load_external_data=False).graph.input
    except DecodeError:
        given = ()
    if not given:
        _require_onnx(model)
    return given


def _require_onnx(model: Path) -> None:
    """ConfigError where the file is no valid ONNX, with the reason: a runtime says of such a file only that it cannot parse it."""
    with of_the_user():
        read_onnx_file(model)


def _range(model: Path) -> tuple[float, float]:
    contract = model.with_name("contract.json")
    entry = json.loads(contract.read_text())["inputs"][0] if contract.is_file() else {}
    return float(entry.get("low", 0.0)), float(entry.get("high", 1.0))
