"""What a bench leaves behind: latency, start, memory and where they were measured. What was not measured says so."""

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from kdpipe.targets.devices.messages import Watched

ModelName = Literal["int8", "float", "teacher"]


class Percentile(BaseModel, extra="forbid", frozen=True):
    """A latency percentile with its 95 % interval, or the reason why it cannot be claimed."""

    value_ms: float | None
    low_ms: float | None = None
    high_ms: float | None = None
    reason: str | None = Field(None, description="'not claimable: 40 runs, 64 are needed' or 'not measured: no device'")


class Latency(BaseModel, extra="forbid", frozen=True):
    """One model in one runtime with one batch size and thread count."""

    model: ModelName
    runtime: str
    batch: int
    threads: int
    runs: int
    p50: Percentile
    p90: Percentile
    p95: Percentile
    p99: Percentile
    p50_inside: Percentile | None = Field(None, description="p50 by the runtime's own clock, without the call from Python; None: it has none (ONNX Runtime)")
    samples_per_second: float | None
    samples_per_second_bounds: tuple[float, float] | None = Field(None, description="its 95 % interval, from the bootstrap of windows")
    histogram_edges_ms: tuple[float, ...] = ()
    histogram_counts: tuple[int, ...] = ()
    ratio_to_float: Percentile | None = Field(None, description="p50 over the float student's, same runtime, batch and threads, paired windows; no unit")


class Rate(BaseModel, extra="forbid", frozen=True):
    """A throughput, or a ratio of two, with its 95 % interval."""

    value: float
    low: float
    high: float


class Throughput(BaseModel, extra="forbid", frozen=True):
    """How much one model gets done when `streams` callers ask it at the same time, each with `threads` threads, each as soon as it has its answer."""

    model: ModelName
    runtime: str
    batch: int
    threads: int
    streams: int
    windows: int
    samples_per_second: Rate
    ratio_to_float: Rate | None = Field(None, description="over the float student's, paired windows; above 1 is more")


class NoiseCheck(BaseModel, extra="forbid", frozen=True):
    """The float model measured against itself, loaded twice and interleaved (A/A): how far from 1 a ratio of equals comes out."""

    runtime: str
    batch: int
    threads: int
    ratio: Percentile


class Conditions(Watched, extra="forbid", frozen=True):
    """What the machine did while the models of one comparison were measured, and whether their figures can be claimed."""

    runtime: str
    batch: int
    threads: int
    streams: int | None = Field(None, description="callers at the same time; None: one caller, whose latency was measured")
    verdict: Literal["claimable", "throttled", "noisy"]
    told: str = Field(description="'claimable', 'throttled: not claimable' or 'noisy: differences below 3.1 % not claimable'")
    resolution_percent: float | None = Field(description="how far from 1 the interval of the A/A ratio reaches; smaller differences show nothing")
    reasons: tuple[str, ...] = Field(description="what speaks against the figures: throttling, drift, other programs, a short measurement")
    short: bool = Field(description="measured for less than the 10 s that are due for a figure that is published")


class Start(BaseModel, extra="forbid", frozen=True):
    """One model in a fresh process: load (without the runtime's import), first inference, peak resident memory."""

    model: ModelName
    runtime: str
    load_ms: float
    first_inference_ms: float
    peak_memory_bytes: int


class Energy(BaseModel, extra="forbid", frozen=True):
    """Energy of one inference (a batch): the median over rounds with the lowest and highest round, and the machine's power at rest.

    The whole machine's (or package's) energy while the model ran, rest included: `rest_watts` says how much of it is not the model's.
    """

    model: ModelName
    runtime: str
    batch: int
    threads: int
    counter: str = Field(description="what counted: 'RAPL package energy', 'hwmon energy meter', …")
    rounds: int
    millijoules: float
    lowest_millijoules: float
    highest_millijoules: float
    rest_watts: float


class DeviceFacts(BaseModel, extra="forbid", frozen=True):
    """The machine: what its figures depend on. None where the machine does not tell."""

    name: str
    kind: str = Field("local", description="'local', 'ssh', 'emulated', or a user's own")
    cpu: str
    architecture: str
    emulator: str | None = Field(None, description="the program that only plays this processor; None: the machine runs its programs itself")
    instruction_sets: tuple[str, ...]
    cores: int
    governor: str | None = None
    clock_mhz: float | None = None
    temperature_celsius: float | None = None
    memory_bytes: int
    runtimes: dict[str, str]


class NodePrecision(BaseModel, extra="forbid", frozen=True):
    """One node of the graph as the runtime runs it. Files of before its time and traffic were measured have None there."""

    name: str
    operator: str
    precision: str = Field(description="'int8', 'float32', …")
    fused: tuple[str, ...] = ()
    note: str | None = None
    microseconds: float | None = Field(None, ge=0, description="of one inference of one sample, as the runtime's own profiler tells it")
    share: float | None = Field(None, ge=0, le=1, description="its part of the time of all nodes")
    bytes_read: int | None = Field(None, ge=0, description="of inputs and weights, by their shapes and types")
    bytes_written: int | None = Field(None, ge=0)


Cause = Literal[
    "residual-add",
    "split-activation",
    "signed-activation",
    "per-channel-activation",
    "float-operator",
    "float-output",
    "weights-only",
    "not-quantized",
    "run-in-float",
    "leftover-quantizers",
    "layout",
    "dynamic-shape",
    "missing-instruction",
    "small-layers",
    "memory-bound",
    "slow-kernel",
    "threads",
    "first-run",
    "fell-back",
]


class Finding(BaseModel, extra="forbid", frozen=True):
    """One reason why int8 is not faster, with what was seen of it."""

    cause: Cause | None = Field(None, description="None: of a file that only held the text")
    text: str = Field(description="what was seen, with figures, in plain language")
    nodes: tuple[str, ...] = ()
    share: float | None = Field(None, ge=0, le=1, description="the part of an inference's time that it accounts for; None where that was not measured")
    remedy: str | None = None

    def __str__(self) -> str:
        return self.text


class Explanation(BaseModel, extra="forbid", frozen=True):
    """What a runtime made of the int8 file, and in plain language why int8 is or is not faster: the weightiest reason first."""

    runtime: str
    nodes: tuple[NodePrecision, ...]
    int8_share: float | None = Field(ge=0, le=1, description="share of the convolutions and linear layers that run in int8; None: the runtime does not tell")
    findings: tuple[Finding, ...] = ()
    threads: int | None = Field(None, ge=1)
    milliseconds: float | None = Field(
        None, gt=0, description="one inference of one sample by the clock outside the runtime: the tenth percentile of some hundred"
    )
    ratio_to_float: float | None = Field(None, gt=0, description="its time over the float file's, of runs in turn; an orientation, without an interval")

    too_busy: str | None = Field(None, description="which times could not be taken because other programs interrupted them; what rests on them is not claimed")

    @field_validator("findings", mode="before")
    @classmethod
    def _texts(cls, findings: Any) -> Any:
        """Files of before findings had parts hold texts."""
        return [{"text": it} if isinstance(it, str) else it for it in findings] if isinstance(findings, list | tuple) else findings


class Bench(BaseModel, extra="forbid", frozen=True):
    """bench.json: everything measured on one device for one target."""

    target: str
    device: DeviceFacts | None
    not_measured: str | None = Field(None, description="why there is no latency, e.g. 'not measured: no device'")
    latencies: tuple[Latency, ...] = ()
    starts: tuple[Start, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    noise: tuple[NoiseCheck, ...] = ()
    warnings: tuple[str, ...] = ()
    energy: tuple[Energy, ...] = ()
    conditions: tuple[Conditions, ...] = Field((), description="one for each comparison")
    throughputs: tuple[Throughput, ...] = ()
    energy_not_measured: str | None = Field(None, description="why there is no energy, e.g. 'not measured: no energy counter'")
