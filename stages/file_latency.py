"""How long a whole network's file takes on a device, measured in turn with others: what pruning by latency goes by, and holds its table against."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.networks import Network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.stages.latency_table import Setting
from kdpipe.targets import latency
from kdpipe.targets.clock_watch import watched
from kdpipe.targets.devices.device import Device, Machine, require_runtime_there, same_as_planned
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile, Windows
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import DeviceFacts, Percentile
from kdpipe.targets.profile import Profile
from kdpipe.targets.runtimes.runtime import require_runtime
from kdpipe.tasks.data.splits import Split

START = "start"
"""the file that the others are compared with"""

_CALIBRATION_SAMPLES = 64  # ranges change no kernel's time
_REAL_INPUTS = 64
_SECONDS = 0.6  # measured time of each file of a comparison
_WINDOWS = 30


class Measured(BaseModel, extra="forbid", frozen=True):
    """The median time of one file in ms with its 95 % interval, its ratio to the first one's of the same run (in turn), and the number of runs."""

    p50: Percentile
    ratio: Percentile
    runs: int = Field(ge=1)

    @property
    def ms(self) -> float:
        """The median; it is always there: a comparison measures enough runs for it."""
        assert self.p50.value_ms is not None
        return self.p50.value_ms

    @property
    def share(self) -> float:
        """Of the first file's time."""
        assert self.ratio.value_ms is not None
        return self.ratio.value_ms

    @property
    def told(self) -> str:
        """`0.123 ms [0.121, 0.125]`."""
        return f"{self.ms:.4g} ms [{self.p50.low_ms:.4g}, {self.p50.high_ms:.4g}]"


@dataclass(frozen=True)
class Stopwatch:
    """A device that is reached, and the setting in which it measures: the profile's first runtime, smallest batch and lowest thread count."""

    device: Device
    facts: DeviceFacts
    setting: Setting

    @property
    def told(self) -> str:
        """`host (onnxruntime 1.32.0, batch 1, 1 thread)`."""
        setting = self.setting
        threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
        return f"{self.device.name} ({setting.runtime} {setting.runtime_version}, batch {setting.batch}, {threads})"

    def compared(self, files: Mapping[str, bytes], split: Split, seed: int) -> dict[str, Measured]:
        """Every file's time, the first one's the baseline, on real samples of `split`. UnavailableError where the device breaks off."""
        with tempfile.TemporaryDirectory() as name:
            request = self._request(files, split, Path(name))
            messages = watched(self.device.ask("bench", request, limit_seconds=2 * request.limit_seconds + 120), device=self.device.name)
            windows = {message.model: message.arrays for message in messages if isinstance(message, Windows)}
        models = latency.measured(windows, numpy_stream(seed, "prune/latency"))
        first = models[next(iter(files))]
        return {
            name: Measured(p50=latency.percentile_of(models[name], 50), ratio=latency.ratio_of(models[name], first), runs=len(models[name].samples))
            for name in files
        }

    def _request(self, files: Mapping[str, bytes], split: Split, folder: Path) -> BenchRequest:
        setting = self.setting
        count = min(len(split), max(_REAL_INPUTS, setting.batch))
        np.save(folder / "inputs.npy", split.read(np.linspace(0, len(split) - 1, count).astype(np.int64)))
        paths = {model: folder / f"{number}.onnx" for number, model in enumerate(files)}
        for model, content in files.items():
            paths[model].write_bytes(content)
        comparison = ComparisonRequest(
            id="networks",
            runtime=setting.runtime,
            threads=setting.threads,
            batch=setting.batch,
            hint=setting.hint,
            inputs=folder / "inputs.npy",
            models=tuple(ModelFile(name=model, path=path) for model, path in paths.items()),
        )
        seconds = _SECONDS * len(files)
        limit = 60 + 4 * seconds
        runs = latency.runs_needed(90)
        return BenchRequest(comparisons=(comparison,), seconds=seconds, runs=runs, windows=_WINDOWS, warmup_seconds=1.0, limit_seconds=limit)


@contextmanager
def stopwatch(profile: Profile, machine: Machine | None, project: Path) -> Iterator[Stopwatch]:
    """The device of the target (None: this host), reached meanwhile.

    Raises UnavailableError where latency means nothing there or cannot be measured, and where the device is not what it was when the build was planned.
    """
    device = LocalDevice() if machine is None else machine.settings.device(machine.name, project)
    with device.connected():
        facts = device.facts() if machine is None else same_as_planned(device, machine)
        sets = probe() if machine is None else frozenset(facts.instruction_sets)
        where = "this host" if machine is None else f"device {device.name}"
        reason = device.no_latency or profile.why_not_measurable(sets, where=where, runtimes=facts.runtimes)
        if reason is not None:
            raise UnavailableError(
                f"pruning by the latency of profile {profile.name} needs its device: {reason}",
                at="[prune] measured_on",
                do="give the target a device that is of its kind (kdpipe devices add), or prune by speedup alone, which counts multiply-accumulates",
            )
        yield Stopwatch(device, facts, _setting(profile, machine, device, facts))


def int8_file(network: Network, train: Split, profile: Profile) -> bytes:
    """The network as the target's file: calibrated on a few training samples, not trained."""
    twin = prepare(network.module.eval(), profile.chosen_scheme, batch_norm="live")
    samples = torch.from_numpy(train.read(np.arange(min(_CALIBRATION_SAMPLES, len(train)))))
    calibrate_(twin, [samples], "minmax", percentile=profile.calibration.percentile)
    return to_bytes(to_onnx(exportable(freeze(twin)), network.spec.contract.shape, opset=profile.opset, static_batch=_static(profile)))


def _setting(profile: Profile, machine: Machine | None, device: Device, facts: DeviceFacts) -> Setting:
    need, at = profile.runtimes_on_device[0], f"profile {profile.name}"
    host = machine is None
    return Setting(
        device=dict(device.identity()),
        runtime=need.name,
        runtime_version=require_runtime(need.name, need.versions, at=at) if host else require_runtime_there(facts, need.name, need.versions, at=at),
        threads=min(facts.cores if count == "all" else count for count in profile.bench.threads),
        batch=_static(profile) or min(profile.bench.batches),
        hint=profile.bench.hint,
        scheme=profile.chosen_scheme,
        opset=profile.opset,
        static_batch=_static(profile),
    )


def _static(profile: Profile) -> int | None:
    return profile.static_batch if profile.batch == "static" else None
