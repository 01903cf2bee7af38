"""What a bench leaves behind: latency, start, memory and where they were measured. What was not measured says so."""

from typing import Literal

from pydantic import BaseModel, Field

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
    samples_per_second: float | None
    histogram_edges_ms: tuple[float, ...] = ()
    histogram_counts: tuple[int, ...] = ()
    ratio_to_float: Percentile | None = Field(None, description="p50 over the float student's, same runtime, batch and threads, paired windows; no unit")


class NoiseCheck(BaseModel, extra="forbid", frozen=True):
    """The float model measured against itself, loaded twice and interleaved (A/A): how far from 1 a ratio of equals comes out."""

    runtime: str
    batch: int
    threads: int
    ratio: Percentile


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
    """One node of the graph as the runtime runs it."""

    name: str
    operator: str
    precision: str = Field(description="'int8', 'float32', …")
    fused: tuple[str, ...] = ()
    note: str | None = None


class Explanation(BaseModel, extra="forbid", frozen=True):
    """What a runtime made of the int8 file, and in plain language why int8 is or is not faster."""

    runtime: str
    nodes: tuple[NodePrecision, ...]
    int8_share: float = Field(ge=0, le=1, description="share of the convolutions and linear layers that run in int8")
    findings: tuple[str, ...] = ()


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
    energy_not_measured: str | None = Field(None, description="why there is no energy, e.g. 'not measured: no energy counter'")
