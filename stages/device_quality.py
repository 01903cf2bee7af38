"""The int8 file's accuracy on a device: the whole test split, computed there, beside what the same runtime answers on this host."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from kdpipe.foundation.errors import UnavailableError
from kdpipe.robustness.intervals import BoolArray, Difference, accuracy, paired_difference
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages.stage import Progress
from kdpipe.targets.devices.device import Device, runnable_there
from kdpipe.targets.devices.messages import PredictRequest
from kdpipe.targets.measurements import DeviceFacts
from kdpipe.targets.profile import RuntimeNeed
from kdpipe.targets.runtimes.runtime import Hint, open_session, require_runtime, session_name
from kdpipe.tasks.data.splits import Float32Array, Split

QUALITY_FILE = "device_quality.json"
CORRECT_FILE = "device_correct.npz"

_BATCH_BYTES = 8_000_000
_LARGEST_BATCH = 256  # so that progress moves on an emulated CPU too
_LIMIT_SECONDS, _LIMIT_SECONDS_PER_SAMPLE = 600.0, 2.0


class DeviceQuality(BaseModel, extra="forbid", frozen=True):
    """One file in one runtime on one device. `agreement`: per cent of samples with the same argmax as on this host, in the same runtime."""

    device: DeviceFacts
    runtime: str = Field(description="with its version there: 'onnxruntime 1.32.0 CPU'")
    clean: Figure
    agreement: Figure
    largest_difference: float | None = Field(None, description="of a logit from this host's")


class DeviceQualities(BaseModel, extra="forbid", frozen=True):
    """device_quality.json."""

    qualities: tuple[DeviceQuality, ...]


@dataclass(frozen=True)
class Judged:
    """The figures, and which samples of the split were right, (n,)."""

    quality: DeviceQuality
    correct: BoolArray


def judged_on(
    device: Device, facts: DeviceFacts, model: Path, needs: Sequence[RuntimeNeed], split: Split, progress: Progress, *, hint: Hint
) -> Iterator[Judged]:
    """The file in each of its runtimes that the device has, over the whole split, batch by batch; those that it has not are said.

    Raises UnavailableError when it has none, or one in another version than needed, and as `Device.predict`.
    """
    there, missing = runnable_there(facts, needs, at=f"device {device.name}")
    for line in missing:
        progress.say(f"accuracy on {device.name}: {line}")
    with device.connected():
        for need in there:
            yield _judged(device, facts, model, need, split, progress, hint)


def spread(correct: Mapping[str, BoolArray]) -> tuple[str, str, Difference]:
    """The best and the worst of at least two places that judged one file on the same samples, and how much they differ.

    `high` is the largest upper bound of any two places: two that differ by less, but on more samples, may truly lie further apart.
    It bounds the largest true difference: where it fails, the bound of that very pair fails too.
    """
    ranked = sorted(correct, key=lambda name: (float(correct[name].mean()), name), reverse=True)
    differences = {pair: paired_difference(correct[pair[0]], correct[pair[1]]) for pair in combinations(ranked, 2)}
    extremes = ranked[0], ranked[-1]
    return *extremes, replace(differences[extremes], high=max(it.high for it in differences.values()))


def _judged(device: Device, facts: DeviceFacts, model: Path, need: RuntimeNeed, split: Split, progress: Progress, hint: Hint) -> Judged:
    size = max(1, min(_LARGEST_BATCH, _BATCH_BYTES // max(1, split.read(np.zeros(1, np.int64)).nbytes)))
    starts = range(0, len(split), size)
    waiting: deque[Float32Array] = deque()

    def batches() -> Iterator[Float32Array]:
        for start in progress(starts, f"accuracy on {device.name}, {need.name}", total=len(starts)):
            waiting.append(split.read(np.arange(start, min(start + size, len(split)))))
            yield waiting[-1]

    request = PredictRequest(runtime=need.name, model=model, threads=1, hint=hint)
    limit = _LIMIT_SECONDS + _LIMIT_SECONDS_PER_SAMPLE * len(split)
    there, same, largest, reason = [], [], 0.0, None
    try:
        require_runtime(need.name, need.versions)
        session = open_session(need.name, model, threads=1, hint=hint)
    except UnavailableError as error:
        session, reason = None, f"not measured: {error.problems[0].message}, here"
    try:
        for logits in device.predict(request, batches(), limit_seconds=limit):
            batch = waiting.popleft()
            there.append(logits.argmax(axis=1))
            if session is not None:
                here = session(batch)
                if here.shape != logits.shape:
                    raise UnavailableError(
                        f"the device gives {logits.shape[1]} logits, the same file here {here.shape[1]}",
                        at=f"device {device.name}",
                        do="run it again; if it stays, the agent there is damaged",
                    )
                same.append(logits.argmax(axis=1) == here.argmax(axis=1))
                largest = max(largest, float(np.abs(logits - here).max()))
    finally:
        if session is not None:
            session.close()
    correct = np.concatenate(there) == split.labels
    agreement = accuracy(np.concatenate(same)) if session is not None else Figure(value=None, reason=reason)
    name = session_name(need.name, facts.runtimes[need.name])
    quality = DeviceQuality(
        device=facts, runtime=name, clean=accuracy(correct), agreement=agreement, largest_difference=largest if session is not None else None
    )
    return Judged(quality, correct)
