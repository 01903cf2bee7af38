"""`kdpipe compare --latency`: whether NEW is slower than OLD, decided by `targets/latency_gate.py` on one device.

Either side is a bundle or an .onnx file. Both get the same real samples: the test split of OLD's data, or of the data that is named.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.benching import MODEL_FILE, device_named, tell_changes
from kdpipe.pipeline.device_sections import HOST
from kdpipe.pipeline.evaluation_basis import Asked as BasisAsked
from kdpipe.pipeline.evaluation_basis import basis_of, read_bundle
from kdpipe.pipeline.foreign_files import of_the_user
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.variants import expanded
from kdpipe.stages.stage import Progress
from kdpipe.targets.devices.device import Device, require_runtime_there, why_no_latency
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.latency_gate import LOOKS, GateResult, Pair, gate
from kdpipe.targets.lint.reading import read_onnx_file
from kdpipe.targets.measurements import DeviceFacts
from kdpipe.targets.profile import Profile
from kdpipe.targets.runtimes.runtime import runtime_names, session_name

EXIT_CODES = {"no regression": 0, "regression": 3, "could not tell": 4}
"""What could not be told is neither a pass nor a regression: a figure that this machine, in this time, does not give."""

_SAMPLES = 64


@dataclass(frozen=True)
class Asked:
    """What the caller names; None: OLD's own. `slower_than`: per cent."""

    device: str = HOST
    runtime: str | None = None
    threads: int = 1
    batch: int | None = None
    slower_than: float = 5.0
    limit_seconds: float = 120.0
    project: Path | None = None
    data: str | None = None


class LatencyComparison(BaseModel, extra="forbid", frozen=True):
    """The verdict and where it holds: one runtime, batch and thread count on one device."""

    old: str
    new: str
    device: DeviceFacts
    runtime: str
    threads: int
    batch: int
    inputs: str = Field(description="what both were given")
    result: GateResult
    exit_code: int

    @property
    def told(self) -> tuple[str, ...]:
        """For people, the verdict last."""
        it = self.result
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        interval = f"[{it.low:.3f}, {it.high:.3f}], {100 * it.confidence:g} %"
        limit = 100 * it.slower_than
        verdict = {
            "regression": f"regression: NEW is more than {limit:g} % slower",
            "no regression": f"no regression: NEW is not {limit:g} % slower",
            "could not tell": f"could not tell in {it.seconds:.0f} s: the interval holds {1 + it.slower_than:g}; a quieter machine or a longer --limit helps",
        }[it.verdict]
        return (
            f"OLD: {self.old}",
            f"NEW: {self.new}",
            f"{self.device.name}: {self.device.cpu}; {self.runtime}, batch {self.batch}, {threads}; {self.inputs}",
            f"p50 of OLD {it.old_p50_ms:.4g} ms, of NEW {it.new_p50_ms:.4g} ms",
            f"NEW takes {it.ratio:.3f} times as long {interval}: {it.runs:,} runs in {len(it.process_ratios)} fresh processes, {it.seconds:.0f} s",
            *it.reasons,
            verdict,
        )


@dataclass(frozen=True)
class _File:
    """One side. `batch` None: free; `profile`: of a bundle."""

    path: Path
    shape: tuple[int | None, ...]
    batch: int | None
    profile: Profile | None


def compare_latency(old: Path, new: Path, asked: Asked, progress: Progress) -> LatencyComparison:
    """Whether `new` is slower than `old`. Raises ConfigError where the two cannot be compared, UnavailableError where the device cannot measure them."""
    _check(asked)
    files = _file(old), _file(new)
    batch = _common_batch(*files, asked.batch)
    project = asked.project or Path()
    device = device_named(asked.device, project)
    with device.connected(), tempfile.TemporaryDirectory() as folder:
        facts = device.facts()
        if not isinstance(device, LocalDevice):
            tell_changes(project, device.name, facts, progress)
        needs = next((file.profile.runtimes_there(facts.runtimes) for file in files if file.profile), ())
        runtime = asked.runtime or (needs[0].name if needs else "onnxruntime")
        version = _require_measurable(device, facts, runtime, files)
        samples, said = _samples(old, files[0], asked)
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, samples)
        hint = files[0].profile.bench.hint if files[0].profile else "latency"
        pair = Pair(files[0].path, files[1].path, runtime, inputs, threads=asked.threads, batch=batch, hint=hint)
        result = gate(device, pair, slower_than=asked.slower_than / 100, limit_seconds=asked.limit_seconds, progress=_counter(progress))
    return LatencyComparison(
        old=str(old),
        new=str(new),
        device=facts,
        runtime=session_name(runtime, version),
        threads=asked.threads,
        batch=batch,
        inputs=said,
        result=result,
        exit_code=EXIT_CODES[result.verdict],
    )


def _check(asked: Asked) -> None:
    limits = (
        ("--slower-than", asked.slower_than, 0.1, 1000, "5"),
        ("--limit", asked.limit_seconds, 1, 86400, "120"),
        ("--threads", asked.threads, 1, 1024, "1"),
    )
    for option, value, low, high, example in limits:
        if not low <= value <= high:
            raise ConfigError(f"{option} {value:g} is not in [{low:g}, {high:g}]", at=option, do=f"for instance {option} {example}")
    if asked.runtime is not None and asked.runtime not in runtime_names():
        raise ConfigError(f"unknown runtime {asked.runtime!r}", at="--runtime", do=f"name one of {', '.join(runtime_names())}")


def _file(place: Path) -> _File:
    if place.suffix == ".onnx" and place.is_file():
        with of_the_user():
            return _read(place, None)
    if not (place / MANIFEST_FILE).is_file() and len(expanded(place)) == 1:
        raise ConfigError("neither a bundle nor an .onnx file", at=place, do="name dist/PROJECT/TARGET of a finished build, or a file")
    folders = expanded(place)
    if len(folders) > 1:
        raise ConfigError(f"the bundle holds {len(folders)} variants", at=place, do=f"name one of them: {', '.join(map(str, folders))}")
    bundle = read_bundle(folders[0])
    return _read(folders[0] / MODEL_FILE, Profile.model_validate(bundle.values["targets"][bundle.target]["profile"]))


def _read(path: Path, profile: Profile | None) -> _File:
    graph = read_onnx_file(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != 1:  # TensorProto.FLOAT
        raise ConfigError("it has not one float32 input", at=path, do="compare files with one float32 input (batch, …)")
    sides = [side.dim_value if side.HasField("dim_value") else None for side in inputs[0].type.tensor_type.shape.dim]
    return _File(path, tuple(sides[1:]), sides[0] if sides else None, profile)


def _common_batch(old: _File, new: _File, asked: int | None) -> int:
    if any(a is not None and b is not None and a != b for a, b in zip(old.shape, new.shape, strict=False)) or len(old.shape) != len(new.shape):
        raise ConfigError(f"OLD takes samples of {_shape(old.shape)}, NEW of {_shape(new.shape)}", at=new.path, do="compare files of the same input")
    fixed = {batch for batch in (old.batch, new.batch, asked) if batch is not None}
    if len(fixed) > 1:
        told = ", ".join(f"{name} {'any' if batch is None else batch}" for name, batch in (("OLD", old.batch), ("NEW", new.batch), ("--batch", asked)))
        raise ConfigError(f"no common batch size: {told}", at=new.path, do="export both with the same batch size, or leave --batch out")
    return fixed.pop() if fixed else 1


def _require_measurable(device: Device, facts: DeviceFacts, runtime: str, files: tuple[_File, _File]) -> str:
    """The runtime's version there. UnavailableError where times there mean nothing, or the runtime is not there."""
    nothing = why_no_latency(device, facts)
    if nothing is not None:
        raise UnavailableError(nothing, at=f"device {device.name}", do="compare on a real device: --device, or this host")
    sets = frozenset(facts.instruction_sets)
    for file in files:
        reason = file.profile.why_not_measurable(sets, where=f"device {device.name}", runtimes=facts.runtimes) if file.profile else None
        if reason is not None:
            raise UnavailableError(reason, at=file.path, do="compare on the device that it was built for: --device")
    needs = [need for file in files if file.profile for need in file.profile.runtimes_there(facts.runtimes)]
    versions = next((need.versions for need in needs if need.name == runtime), "")
    return require_runtime_there(facts, runtime, versions, at=f"device {device.name}")


def _samples(old: Path, file: _File, asked: Asked) -> tuple[Float32Array, str]:
    """Real samples where there are data; for a lone file without any, drawn ones, which is said."""
    if file.profile is None and asked.data is None and asked.project is None:
        if None in file.shape:
            raise ConfigError(f"samples of {_shape(file.shape)} cannot be drawn", at=old, do="name --data, whose samples have their size")
        shape = tuple(side or 1 for side in file.shape)
        drawn: Float32Array = numpy_stream(0, "compare/latency").random((_SAMPLES, *shape), dtype=np.float32)
        return drawn, f"{_SAMPLES} samples drawn in [0, 1): name --data for real ones"
    basis = basis_of(old, BasisAsked(project=asked.project, data=asked.data))
    test = basis.data.test
    samples = test.read(np.linspace(0, len(test) - 1, min(len(test), _SAMPLES)).astype(np.int64))
    if any(side is not None and side != there for side, there in zip(file.shape, samples.shape[1:], strict=False)) or samples.ndim != len(file.shape) + 1:
        raise ConfigError(f"the file takes samples of {_shape(file.shape)}, the data's are {_shape(samples.shape[1:])}", at=old, do="name the --data it is for")
    return samples, f"{len(samples)} test samples"


def _counter(progress: Progress) -> Callable[[int], None]:
    looks = {count for count, _ in LOOKS}

    def told(processes: int) -> None:
        if processes in looks and processes > LOOKS[0][0]:
            progress.say(f"{processes} processes measured; it cannot be told yet")

    return told


def _shape(sides: tuple[int | None, ...]) -> str:
    return "×".join("?" if side is None else str(side) for side in sides) or "one value"
