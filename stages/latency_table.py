"""How long each layer takes on a device, by shape and width, measured and kept: `.kdpipe/latency/<digest>.json`.

A table belongs to what changes its figures (device, runtime and its version, threads, batch, scheme, opset); its file is named after that and
says it inside, and a file that says anything else is not used. It grows by the shapes that are asked for, and is written after every few
of them, so that measuring which was interrupted goes on. Between measured widths it interpolates along the inputs alone: along the outputs
kernels work in blocks, and a width between two blocks can cost more than either (docs/decisions/latency-pruning.md).
Source of the idea: Yang et al. 2018 (arXiv:1804.03230), section 3.3; Shen et al. 2021 (arXiv:2110.10811), section 3.2.
"""

import hashlib
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, JsonValue, ValidationError

from kdpipe.foundation.files import canonical_json, told_disk_errors, write_text
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.stages.layer_files import LayerShape, layer_file
from kdpipe.stages.stage import Progress
from kdpipe.targets.clock_watch import watched
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile, Windows

FOLDER = Path(".kdpipe") / "latency"
"""below the project's folder"""

PROTOCOL = 1
"""Of measuring and of the file; a table made by another one is made anew."""

_COPIES = (1, 5)  # of the layer in the two files whose difference is measured
_AT_ONCE = 24  # shapes in one request: what an interruption loses
_WINDOWS = 20
_WINDOW_SECONDS = 0.002
_WARMUP_SECONDS = 0.1
_LIMIT_SECONDS = 10.0  # of one shape
_SAMPLES = 8
_RESAMPLES = 500
_KNOTS = 3  # widths of the inputs at which every width of the outputs is measured

Int64Array = npt.NDArray[np.int64]


class Entry(BaseModel, extra="forbid", frozen=True):
    """One layer's time in ns: the median over `windows` of paired differences, with its 95 % interval; `runs` of both files together."""

    shape: LayerShape
    ns: float = Field(gt=0, allow_inf_nan=False)
    low_ns: float = Field(allow_inf_nan=False)
    high_ns: float = Field(allow_inf_nan=False)
    windows: int = Field(ge=1)
    runs: int = Field(ge=1)


class _Content(BaseModel, extra="forbid", frozen=True):
    identity: dict[str, JsonValue]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Setting:
    """What a table is measured with. `device`: its identity; `runtime_version`: of the runtime there; `static_batch` None: a free batch size."""

    device: Mapping[str, JsonValue]
    runtime: str
    runtime_version: str
    threads: int
    batch: int
    hint: Literal["latency", "throughput"]
    scheme: Scheme
    opset: int
    static_batch: int | None

    def identity(self) -> dict[str, JsonValue]:
        """All of it as JSON, the device's name left out: it is the same machine under another name."""
        return {
            "protocol": PROTOCOL,
            "device": {key: value for key, value in self.device.items() if key not in ("name", "runtimes")},
            "runtime": f"{self.runtime} {self.runtime_version}",
            "threads": self.threads,
            "batch": self.batch,
            "hint": self.hint,
            "scheme": self.scheme.model_dump(mode="json"),
            "opset": self.opset,
            "static_batch": self.static_batch,
        }


class LatencyTable:
    """The table of one setting; entries by the shape's name."""

    def __init__(self, setting: Setting, path: Path, entries: Mapping[str, Entry]) -> None:
        self.setting = setting
        self.path = path
        self.entries = dict(entries)

    @classmethod
    def opened(cls, setting: Setting, project: Path, say: Callable[[str], None]) -> "LatencyTable":
        """The table as the project has it, empty where it has none; of one that is damaged or of another setting is told, and it is not used."""
        digest = hashlib.sha256(canonical_json(setting.identity())).hexdigest()
        path = project / FOLDER / f"{digest}.json"
        return cls(setting, path, {entry.shape.name: entry for entry in _read(path, setting, say)})

    def missing(self, shapes: Iterable[LayerShape]) -> list[LayerShape]:
        """Those that were not measured yet, each once."""
        return list({shape.name: shape for shape in shapes if shape.name not in self.entries}.values())

    def measure(self, shapes: Iterable[LayerShape], device: Device, progress: Progress) -> int:
        """Measure those of `shapes` that are missing; how many there were. What was measured is kept even where the device breaks off (UnavailableError)."""
        missing = self.missing(shapes)
        for _ in progress(self._grown_by(missing, device), f"latency table of {device.name}", total=len(missing), unit="shape"):
            pass
        return len(missing)

    def _grown_by(self, missing: Sequence[LayerShape], device: Device) -> Iterator[LayerShape]:
        """Each of `missing` once it is measured; a few at once, which are then on the disk."""
        for start in range(0, len(missing), _AT_ONCE):
            piece = missing[start : start + _AT_ONCE]
            for entry in _measured(piece, self.setting, device):
                self.entries[entry.shape.name] = entry
            self._write()
            yield from piece

    def ns(self, shape: LayerShape) -> float:
        """The layer's time: measured, or interpolated along the inputs between measured neighbours; > 0.

        Between the inputs at which this width of the outputs was measured, times what the widest outputs that were measured at this very
        number of inputs deviate from the same line: so a number of inputs that the kernels dislike stays disliked.
        """
        exact = self.entries.get(shape.name)
        if exact is not None:
            return exact.ns
        family = [entry for entry in self.entries.values() if _family(entry.shape) == _family(shape)]
        own = _line(family, shape.outputs)
        if not own:
            return self._between_outputs(shape, family)
        return _interpolated(own, shape.inputs) * _deviation(family, shape.inputs, own)

    def _between_outputs(self, shape: LayerShape, family: Sequence[Entry]) -> float:
        known = sorted({entry.shape.outputs for entry in family})
        assert known, f"nothing like it was measured: {shape.name}"
        position = bisect_left(known, shape.outputs)
        neighbours = known[max(0, position - 1) : position + 1]
        return _interpolated({outputs: self.ns(shape.resized(shape.inputs, outputs)) for outputs in neighbours}, shape.outputs)

    def _write(self) -> None:
        """All entries, with those that another build of the project has added meanwhile."""
        merged = {entry.shape.name: entry for entry in _read(self.path, self.setting, lambda line: None)} | self.entries
        content = _Content(identity=self.setting.identity(), entries=tuple(merged[name] for name in sorted(merged)))
        with told_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, content.model_dump_json(indent=1) + "\n")


def grid(shape: LayerShape, inputs: Sequence[int], outputs: Sequence[int]) -> Iterator[LayerShape]:
    """What to measure of a layer whose sides can have these widths (any order, the present ones among them).

    Every width of the outputs at a few of the inputs, every width of the inputs at the widest outputs; `ns` gives the rest.
    """
    inputs, outputs = sorted(set(inputs)), sorted(set(outputs))
    knots = inputs if len(inputs) <= _KNOTS else [inputs[round(step * (len(inputs) - 1) / (_KNOTS - 1))] for step in range(_KNOTS)]
    yield from (shape.resized(width, made) for made in outputs for width in knots)
    yield from (shape.resized(width, outputs[-1]) for width in inputs)


def _read(path: Path, setting: Setting, say: Callable[[str], None]) -> tuple[Entry, ...]:
    if not path.is_file():
        return ()
    try:
        content = _Content.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        aside = path.with_suffix(".damaged")
        say(f"the latency table {path.name[:12]}… cannot be read ({type(error).__name__}); set aside as {aside.name[:12]}….damaged, measuring anew")
        with told_disk_errors(path):
            path.replace(aside)
        return ()
    if content.identity != setting.identity():
        say(f"the latency table {path.name[:12]}… is of another device or setting than its name says: not used")
        return ()
    return content.entries


def _measured(shapes: Sequence[LayerShape], setting: Setting, device: Device) -> Iterator[Entry]:
    """The entries of `shapes`, in order, by one request."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        comparisons = tuple(_comparison(shape, folder / str(number), setting) for number, shape in enumerate(shapes))
        request = BenchRequest(
            comparisons=comparisons,
            seconds=_WINDOWS * 2 * _WINDOW_SECONDS,
            runs=_WINDOWS,
            windows=_WINDOWS,
            window_seconds=_WINDOW_SECONDS,
            warmup_seconds=_WARMUP_SECONDS,
            limit_seconds=_LIMIT_SECONDS,
        )
        limit = 60 + len(shapes) * 2 * (_LIMIT_SECONDS + _WARMUP_SECONDS)
        windows: dict[tuple[str, str], Windows] = {}
        for message in watched(device.ask("bench", request, limit_seconds=limit), device=device.name):
            if isinstance(message, Windows):
                windows[message.comparison, message.model] = message
    for shape, comparison in zip(shapes, comparisons, strict=True):
        few, many = (windows[comparison.id, model.name].ns for model in comparison.models)
        yield _entry(shape, few, many)


def _comparison(shape: LayerShape, folder: Path, setting: Setting) -> ComparisonRequest:
    folder.mkdir()
    inputs = folder / "inputs.npy"
    random = numpy_stream(0, f"latency-table/{shape.name}")
    np.save(inputs, random.random((max(_SAMPLES, setting.batch), *shape.sample_shape), np.float32))
    models = []
    for copies in _COPIES:
        path = folder / f"{copies}.onnx"
        path.write_bytes(layer_file(shape, copies, _COPIES[1], setting.scheme, opset=setting.opset, static_batch=setting.static_batch))
        models.append(ModelFile(name=str(copies), path=path))
    return ComparisonRequest(
        id=folder.name, runtime=setting.runtime, threads=setting.threads, batch=setting.batch, hint=setting.hint, inputs=inputs, models=tuple(models)
    )


def _entry(shape: LayerShape, few: Sequence[Sequence[int]], many: Sequence[Sequence[int]]) -> Entry:
    """The median of the differences of paired windows, and its interval by a bootstrap over them."""
    pairs = min(len(few), len(many))
    more = _COPIES[1] - _COPIES[0]
    differences = np.array([(np.median(many[pair]) - np.median(few[pair])) / more for pair in range(pairs)])
    drawn = numpy_stream(0, f"latency-table/{shape.name}/bootstrap").integers(0, pairs, (_RESAMPLES, pairs))
    low, high = np.quantile(np.median(differences[drawn], axis=1), (0.025, 0.975))
    runs = sum(map(len, few)) + sum(map(len, many))
    # a layer cannot take less than nothing; noise can say so of a tiny one
    return Entry(shape=shape, ns=max(1.0, float(np.median(differences))), low_ns=float(low), high_ns=float(high), windows=pairs, runs=runs)


def _family(shape: LayerShape) -> LayerShape:
    """The shape without its widths."""
    depthwise = shape.groups > 1 and shape.groups == shape.inputs == shape.outputs
    return shape.model_copy(update={"inputs": 1, "outputs": 1, **({"groups": 0} if depthwise else {})})


def _line(family: Iterable[Entry], outputs: int) -> dict[int, float]:
    """Inputs to ns of the entries with this width of the outputs."""
    return {entry.shape.inputs: entry.ns for entry in family if entry.shape.outputs == outputs}


def _interpolated(known: Mapping[int, float], width: int) -> float:
    """Linear between neighbours; outside, that of the nearest: what was not measured saves nothing."""
    widths = sorted(known)
    return float(np.interp(width, widths, [known[each] for each in widths]))


def _deviation(family: Sequence[Entry], inputs: int, knots: Mapping[int, float]) -> float:
    """Measured over interpolated from the same knots, at these inputs and the widest outputs that were measured at them; 1 where none were."""
    at = [entry.shape.outputs for entry in family if entry.shape.inputs == inputs]
    if not at:
        return 1.0
    reference = _line(family, max(at))
    shared = {width: ns for width, ns in reference.items() if width in knots}
    return reference[inputs] / _interpolated(shared, inputs) if len(shared) > 1 else 1.0
