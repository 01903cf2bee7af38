"""What a finished build holds, read once and typed: for the budgets, the table, the bundle and the report.

The steps' files are data from outside (a store may be old, or edited by hand): they are checked here and trusted after.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.networks import load_spec
from kdpipe.foundation.predictor import Float32Array
from kdpipe.pipeline.steps import BuildResult
from kdpipe.robustness.intervals import BoolArray
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages.device_quality import CORRECT_FILE, QUALITY_FILE, DeviceQualities, DeviceQuality
from kdpipe.stages.history import HISTORY_FILE, History
from kdpipe.stages.judged_examples import ANSWERS_FILE, TENSORS_FILE, Examples
from kdpipe.stages.parity import PARITY_FILE, Parity
from kdpipe.stages.qat import QUANTIZATION_FILE, Outcome
from kdpipe.stages.score_export import UNAVAILABLE_FILE
from kdpipe.targets.measurements import Bench
from kdpipe.targets.profile import DEFAULT_VARIANT, Profile
from kdpipe.targets.runtimes.runtime import runtime_of

INT8 = "int8"
"""the role of the file that ships, in every machine-readable file, whatever its scheme"""
SHARED_SCORES = ("score-teacher", "score-distill", "score-prune")


class Trainings(BaseModel, extra="forbid", frozen=True):
    """history.json: the trainings of one stage, in order."""

    trainings: tuple[History, ...]


@dataclass(frozen=True)
class Judged:
    """A model with its scorecard. `correct`: bool arrays over the test samples by kind: 'clean', 'robust', 'attack/pgd-20', …"""

    card: Scorecard
    target: str | None
    correct: Mapping[str, BoolArray]
    shipped: str = INT8
    """what the file that ships is called, by its scheme"""

    @property
    def model(self) -> str:
        """`card.model`, the shipped file by its scheme: 'student', 'int8', 'float16'."""
        return self.shipped if self.card.model == INT8 else self.card.model

    @property
    def name(self) -> str:
        """What the model is called in tables and pictures: 'student', 'int8 onnxruntime'; the runtime's version stands elsewhere."""
        return self.model if self.card.runtime is None else f"{self.model} {runtime_of(self.card.runtime)}"


@dataclass(frozen=True)
class SampleImages:
    """A few test samples and what the int8 file said to them. `versions`: 'clean', 'adversarial', 'corrupted/jpeg' to (n, *shape) in [0, 1]."""

    examples: Examples
    versions: Mapping[str, Float32Array]


@dataclass(frozen=True)
class TargetResults:
    """One target's tail of the build; what was not run (a build `--until` an earlier stage) is None or empty."""

    name: str
    export: Path | None
    twin: Judged | None
    files: tuple[Judged, ...]
    """the int8 file, judged in each runtime of the target"""
    ptq: tuple[Judged, ...]
    unavailable: Mapping[str, str]
    """runtime of the target in which the file could not be judged here, to the reason"""
    samples: SampleImages | None
    quantization: Outcome | None
    parity: Parity | None
    bench: Bench | None
    on_devices: tuple["JudgedThere", ...] = ()
    """the int8 file's accuracy on further machines"""
    unsuited: str | None = None
    """why figures of this host are not those of the file on its chip, where a variant was chosen that this host does not compute exactly"""

    @property
    def shipped(self) -> str:
        """What the file that ships is called, by its scheme: 'int8', 'float16'."""
        return INT8 if self.quantization is None else self.quantization.shipped

    @property
    def on_suited_devices(self) -> tuple["JudgedThere", ...]:
        """The machines among them that compute the file exactly."""
        return tuple(it for it in self.on_devices if it.unsuited is None)


@dataclass(frozen=True)
class JudgedThere:
    """The int8 file on a device: the figures, and which test samples were right, (n,). `unsuited`: as in `TargetResults`, of that device."""

    quality: DeviceQuality
    correct: BoolArray
    unsuited: str | None = None

    @property
    def name(self) -> str:
        """`onnxruntime on pi`."""
        return f"{runtime_of(self.quality.runtime)} on {self.quality.device.name}"


@dataclass(frozen=True)
class Results:
    """A build's figures. `shared`: teacher, student, pruned, those that were judged; `histories`, `seconds` by step name; `labels` the class names."""

    shared: tuple[Judged, ...]
    targets: Mapping[str, TargetResults]
    histories: Mapping[str, tuple[History, ...]]
    labels: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def teacher(self) -> Judged | None:
        """The teacher, where it was judged."""
        return next((judged for judged in self.shared if judged.card.model == "teacher"), None)

    @property
    def judged(self) -> tuple[Judged, ...]:
        """All models in order: shared ones, then each target's twin, int8 file by runtime, post-training quantization by runtime."""
        tails = [judged for tail in self.targets.values() for judged in ((tail.twin,) if tail.twin else ()) + tail.files + tail.ptq]
        return self.shared + tuple(tails)


def read_results(build: BuildResult) -> Results:
    """The figures of `build`. Raises VerificationError when a file that its step leaves is missing or is not what it should be."""
    shared = tuple(_judged(build.results[step].folder, None) for step in SHARED_SCORES if step in build.results)
    labels = load_spec(build.results["teacher"].folder).contract.labels
    seconds = {name: result.seconds for name, result in build.results.items()}
    histories = {name: read_model(path, Trainings).trainings for name, result in build.results.items() if (path := result.folder / HISTORY_FILE).is_file()}
    return Results(shared, {target: _target(build, target) for target in build.targets}, histories, labels, seconds)


Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, model: type[Model]) -> Model:
    """The file as a `model`; VerificationError when it is missing, damaged or of another shape."""
    return _read(path, model.model_validate_json)


def read_json(path: Path) -> object:
    """The file as a JSON value; VerificationError when it is missing or damaged."""
    return _read(path, json.loads)


Content = TypeVar("Content")


def _read(path: Path, parsed: Callable[[bytes], Content]) -> Content:
    try:
        return parsed(path.read_bytes())
    except (OSError, ValueError, ValidationError, SafetensorError) as error:
        raise VerificationError(
            f"cannot be read as a build's result: {error}", at=path, do="run 'kdpipe build' again; the step's artifact will be checked and rebuilt"
        ) from error


def _target(build: BuildResult, target: str) -> TargetResults:
    def folder(step: str) -> Path | None:
        result = build.results.get(f"{step}@{target}")
        return None if result is None else result.folder

    variant = _variant_profile(build, target)
    qat, twin, export, files, bench = (folder(step) for step in ("qat", "score-qat", "export", "score-export", "bench"))
    quantization = read_model(qat / QUANTIZATION_FILE, Outcome) if qat else None
    judged = _several(files, target) if files else ()
    if quantization is not None:
        judged = tuple(replace(it, shipped=quantization.shipped) for it in judged)
    unavailable = _read(files / UNAVAILABLE_FILE, TypeAdapter(dict[str, str]).validate_json) if files else {}
    return TargetResults(
        target,
        export,
        _judged(twin, target) if twin else None,
        tuple(it for it in judged if it.card.model == INT8),
        tuple(it for it in judged if it.card.model == "ptq"),
        unavailable,
        _samples(files) if files else None,
        quantization,
        read_model(export / PARITY_FILE, Parity) if export else None,
        read_model(bench / "bench.json", Bench) if bench else None,
        _on_devices(bench, variant) if bench else (),
        _unsuited_host(build, target, variant),
    )


def _variant_profile(build: BuildResult, target: str) -> Profile | None:
    """The target's profile, where another variant than its default was chosen: the default is judged wherever it runs."""
    profile = build.config.get("targets", {}).get(target, {}).get("profile", {})
    return Profile.model_validate(profile) if profile.get("variant", DEFAULT_VARIANT) != DEFAULT_VARIANT else None


def _unsuited_host(build: BuildResult, target: str, variant: Profile | None) -> str | None:
    """By the instruction sets with which the file was exported and judged."""
    export = build.results.get(f"export@{target}")
    sets = None if export is None else export.step.identity.get("instruction_sets")
    return None if variant is None or sets is None else variant.why_not_exact(frozenset(sets))


def _on_devices(bench: Path, variant: Profile | None) -> tuple[JudgedThere, ...]:
    if not (bench / QUALITY_FILE).is_file():
        return ()  # the target names no device
    arrays = _arrays(bench / CORRECT_FILE)
    qualities = read_model(bench / QUALITY_FILE, DeviceQualities).qualities
    return tuple(JudgedThere(it, arrays[f"{it.device.name}/{it.runtime}/clean"], _unsuited(it, variant)) for it in qualities)


def _unsuited(judged: DeviceQuality, variant: Profile | None) -> str | None:
    device = judged.device
    return None if variant is None else variant.why_not_exact(frozenset(device.instruction_sets), where=f"device {device.name}")


def _judged(folder: Path, target: str | None) -> Judged:
    return Judged(read_model(folder / "scorecard.json", Scorecard), target, _arrays(folder / "correct.npz"))


def _several(folder: Path, target: str) -> tuple[Judged, ...]:
    cards = _read(folder / "scorecards.json", TypeAdapter(tuple[Scorecard, ...]).validate_json)
    arrays = _arrays(folder / "correct.npz")
    judged = []
    for card in cards:
        own = f"{card.model}/{card.runtime}/"
        judged.append(Judged(card, target, {name.removeprefix(own): array for name, array in arrays.items() if name.startswith(own)}))
    return tuple(judged)


def _samples(folder: Path) -> SampleImages:
    examples = read_model(folder / ANSWERS_FILE, Examples)
    versions = _read(folder / TENSORS_FILE, safetensors.numpy.load)
    return SampleImages(examples, {name: versions[name] for name in examples.answers})


def _arrays(path: Path) -> dict[str, BoolArray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if archive[name].dtype == np.bool_}  # not the attacked samples' indices
    except (OSError, ValueError) as error:
        raise VerificationError(
            f"cannot be read as a build's result: {error}", at=path, do="run 'kdpipe build' again; the step's artifact will be checked and rebuilt"
        ) from error
