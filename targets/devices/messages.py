"""What host and agent say to each other, checked on the host's side: a device's answer is input from outside."""

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.agent import PROTOCOL

LONGEST_NS = 10**17  # three years: what is longer was not measured


def printable(text: str) -> str:
    """The text in one line without what would steer a terminal: a device's words are shown to people."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


Nanoseconds = Annotated[int, Field(gt=0, le=LONGEST_NS)]
Bytes = Annotated[int, Field(gt=0, le=1 << 60)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Words = Annotated[str, StringConstraints(max_length=300), AfterValidator(printable)]
Versions = Annotated[dict[Words, Words], Field(max_length=100)]


class ModelFile(BaseModel, extra="forbid", frozen=True):
    """A model of a comparison: its name there, and its file on the host."""

    name: str
    path: Path


class ComparisonRequest(BaseModel, extra="forbid", frozen=True):
    """Models that are measured in turn: same runtime, batch size, threads and input. `inputs`: .npy, float32 (n, *shape)."""

    id: str
    runtime: str
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    hint: Literal["latency", "throughput"] = "latency"
    inputs: Path
    models: tuple[ModelFile, ...] = Field(min_length=1)
    mode: Literal["single-stream", "throughput"] = Field("single-stream", description="what is timed: each run of one caller, or how much all callers get done")
    streams: int = Field(1, ge=1, le=1024, description="callers at the same time, each with `threads` threads; for throughput")


class BenchRequest(BaseModel, extra="forbid", frozen=True):
    """`bench`: each comparison goes on for `seconds`, and until each model has `runs` and `windows`, at most `limit_seconds`."""

    comparisons: tuple[ComparisonRequest, ...]
    seconds: float = Field(gt=0)
    runs: int = Field(ge=1)
    windows: int = Field(20, ge=2, description="fewest windows of each model: what the bootstrap draws from")
    window_seconds: float = Field(0.01, gt=0)
    warmup_seconds: float = Field(gt=0, description="most time for warming up; less when the medians are stable before")
    limit_seconds: float = Field(gt=0)


class StartRequest(BaseModel, extra="forbid", frozen=True):
    """`start`: one model in a fresh process."""

    runtime: str
    model: Path
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    hint: Literal["latency", "throughput"] = "latency"
    inputs: Path


class EnergyRequest(BaseModel, extra="forbid", frozen=True):
    """`energy`: the models of a comparison in turn, `rounds` times, `seconds` each time; and the machine at rest as long."""

    runtime: str
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    hint: Literal["latency", "throughput"] = "latency"
    inputs: Path
    models: tuple[ModelFile, ...] = Field(min_length=1)
    rounds: int = Field(5, ge=1)
    seconds: float = Field(gt=0)


class PredictRequest(BaseModel, extra="forbid", frozen=True):
    """`predict`: one model; batches of samples follow."""

    runtime: str
    model: Path
    threads: int = Field(ge=1)
    hint: Literal["latency", "throughput"] = "latency"


Request = BenchRequest | StartRequest | EnergyRequest | PredictRequest


class Hello(BaseModel, extra="forbid", frozen=True):
    """The agent is there, and speaks this protocol."""

    kind: Literal["hello"]
    protocol: int
    runtimes: Versions


class Windows(BaseModel, extra="forbid", frozen=True):
    """All samples of one model in one comparison, window by window, in nanoseconds."""

    kind: Literal["windows"]
    comparison: str
    model: str
    ns: tuple[Annotated[tuple[Nanoseconds, ...], Field(min_length=1)], ...] = Field(min_length=1)
    inside_ns: tuple[tuple[Nanoseconds, ...], ...] | None = Field(None, description="the same runs by the runtime's own clock; None: it has none")

    @model_validator(mode="after")
    def _same_runs(self) -> Self:
        if self.inside_ns is not None and [*map(len, self.inside_ns)] != [*map(len, self.ns)]:
            raise ValueError("inside_ns has other windows than ns")
        return self

    @property
    def arrays(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The windows as `targets/latency.py` takes them."""
        return tuple(np.array(window, dtype=np.int64) for window in self.ns)

    @property
    def inside(self) -> tuple[npt.NDArray[np.int64], ...] | None:
        """The same by the runtime's own clock."""
        return None if self.inside_ns is None else tuple(np.array(window, dtype=np.int64) for window in self.inside_ns)


class ThroughputWindows(BaseModel, extra="forbid", frozen=True):
    """How much one model got done in each window: of each caller how many runs, and in how many nanoseconds."""

    kind: Literal["throughput"]
    comparison: str
    model: str
    windows: tuple[Annotated[tuple[tuple[Annotated[int, Field(gt=0, le=1 << 60)], Nanoseconds], ...], Field(min_length=1, max_length=1024)], ...] = Field(
        min_length=1
    )


class Elapsed(BaseModel, extra="forbid", frozen=True):
    """The device's own time since its `hello`, told at once: the host compares it with its own."""

    kind: Literal["elapsed"]
    ns: Nanoseconds


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Cores = Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 16)], ...], Field(max_length=4096)]


class Watched(BaseModel, extra="forbid", frozen=True):
    """What the machine did while one comparison was measured; None where it does not tell. Clock and temperature: at first, lowest or highest, at last."""

    seconds: Annotated[float, Field(ge=0, le=LONGEST_NS / 1e9)]
    cores: Cores = Field(description="logical CPUs that the measured threads were kept on; empty: the system keeps none")
    siblings: Cores = Field(description="hyper-threads of the same physical cores that others could use meanwhile")
    clock_mhz: tuple[Finite | None, Finite | None, Finite | None]
    temperature_celsius: tuple[Finite | None, Finite | None, Finite | None]
    throttle_events: Count | None
    held_back: bool | None = Field(description="a Raspberry Pi's own word: voltage, clock cap or heat")
    others_share: Share | None = Field(description="of the time of our cores, taken by other programs")
    stolen_share: Share | None = Field(description="of the time of our cores, taken by the hypervisor")
    switches_waiting: Count = Field(description="context switches because the process waited")
    switches_preempted: Count = Field(description="context switches because another took the core")


class ComparisonDone(BaseModel, extra="forbid", frozen=True):
    """A comparison ended. `warm`: by model, whether it was stable before measuring; clock and temperature before and after."""

    kind: Literal["comparison"]
    id: str
    warm: dict[str, bool]
    clock_mhz: tuple[Finite | None, Finite | None]
    temperature_celsius: tuple[Finite | None, Finite | None]
    conditions: Watched | None = None


class StartMeasured(BaseModel, extra="forbid", frozen=True):
    """One cold start."""

    kind: Literal["start"]
    load_ns: Nanoseconds
    first_inference_ns: Nanoseconds
    peak_memory_bytes: Bytes


class EnergyMeasured(BaseModel, extra="forbid", frozen=True):
    """Joules of one model in each round, with how many runs and seconds; `model` None: the machine at rest."""

    kind: Literal["energy"]
    model: str | None
    counter: Words
    rounds: tuple[tuple[Annotated[float, Field(ge=0, le=1e12)], Annotated[int, Field(ge=0, le=LONGEST_NS)], Annotated[float, Field(gt=0, le=1e8)]], ...]


class NoEnergy(BaseModel, extra="forbid", frozen=True):
    """Why energy cannot be measured there."""

    kind: Literal["no-energy"]
    reason: Words


class Logits(BaseModel, extra="forbid", frozen=True):
    """The logits of one batch: little-endian float32 in base64, `shape` (samples, classes)."""

    kind: Literal["logits"]
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    float32: str


class Facts(BaseModel, extra="forbid", frozen=True):
    """The machine, as it describes itself; `flags` are the kernel's names."""

    kind: Literal["facts"]
    protocol: int
    system: Words
    cpu: Words
    architecture: Words
    emulator: Words | None = None
    flags: tuple[Words, ...] = Field(max_length=10_000)
    cores: int = Field(ge=1, le=1 << 20)
    governor: Words | None
    clock_mhz: Finite | None
    temperature_celsius: Finite | None
    memory_bytes: Bytes
    runtimes: Versions


class Failure(BaseModel, extra="forbid", frozen=True):
    """The agent could not do it, and why."""

    kind: Literal["failure"]
    message: str


class Done(BaseModel, extra="forbid", frozen=True):
    """The last line of a request that was answered whole."""

    kind: Literal["done"]


_LAST_WORDS = 1000

Message = Hello | Windows | ThroughputWindows | Elapsed | ComparisonDone | StartMeasured | EnergyMeasured | NoEnergy | Logits | Facts | Failure | Done
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def parsed(line: str | bytes, *, device: str) -> Message:
    """The message in one line of the agent; UnavailableError when it is not one, or of another protocol, or a failure."""
    try:
        message = _ADAPTER.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnavailableError(
            f"the device's answer is not valid ({where + ': ' if where else ''}{first['msg']}): {_start(line)!r}",
            at=f"device {device}",
            do="run it again; if it stays, the agent there is damaged",
        ) from error
    if isinstance(message, Hello | Facts) and message.protocol != PROTOCOL:
        raise UnavailableError(
            f"the agent speaks protocol {message.protocol}, this kdpipe speaks {PROTOCOL}",
            at=f"device {device}",
            do="use the same kdpipe on both sides",
        )
    if isinstance(message, Failure):
        raise UnavailableError(
            f"the device could not run it: {printable(message.message)[:_LAST_WORDS]}",
            at=f"device {device}",
            do="check that the runtime is installed there and that the file loads in it",
        )
    return message


def _start(line: str | bytes) -> str:
    return (line if isinstance(line, str) else line.decode(errors="replace"))[:120]
