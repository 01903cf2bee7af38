"""The one file that runs on a device: facts, latency samples, what a runtime made of a file, starts, energy, logits. Python 3.8, numpy, the runtime suffice.

    python agent.py probe|bench|start|energy|predict < request.json

One JSON object in one line on standard input (behind it, for `predict`, batches), JSON lines on standard output, each
with a `kind`; raw samples, never summaries. It
imports nothing of kdpipe, because it is copied to boards; kdpipe imports it, so that what is scored and what is
measured is opened with the same settings.
"""

from __future__ import annotations  # Python 3.8 on boards

import base64
import contextlib
import gc
import io
import json
import os
import platform
import re
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

PROTOCOL = 2
STABLE_WINDOWS = 3
STABLE_SPREAD = 0.05  # warm: the medians of the last three windows lie within 5 % of each other
# What computes, by the name of the runtime: ONNX Runtime's name of its provider, OpenVINO's name of its device.
PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-openvino": "OpenVINOExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-xnnpack": "XnnpackExecutionProvider",
}
_WITH_LIBRARIES = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider")  # loaded when one is asked for
# the smallest ONNX file: y = Identity(x)
_IDENTITY = bytes.fromhex(
    "080712003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
OPENVINO_DEVICES = {"openvino": "CPU", "openvino-gpu": "GPU", "openvino-npu": "NPU"}
# Under which names a module is published; each with other providers.
DISTRIBUTIONS = {
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-rocm",
        "onnxruntime-directml",
        "onnxruntime-qnn",
        "onnxruntime-training",
    ),
    "openvino": ("openvino",),
}
# machine names to the processors that ELF files for them name (elf.h); 32-bit programs run on 64-bit kernels
ELF_MACHINES = {"x86_64": (62, 3), "amd64": (62, 3), "i686": (3,), "aarch64": (183, 40), "arm64": (183, 40), "armv7l": (40,), "armv6l": (40,)}

_CPUS = "/sys/devices/system/cpu"
_TICKS = os.sysconf("SC_CLK_TCK")

Array = Any  # a numpy array; numpy.typing is not in every numpy that boards have


@dataclass
class Loaded:
    """A model ready to run. `batch`: its fixed batch size, None where it is dynamic; `shape`: of one sample, None where a side is free."""

    run: Callable[[Array], Array]
    handle: Any
    input_name: str
    input_type: str
    batch: int | None
    shape: tuple[int | None, ...]
    outputs: int
    fell_back: tuple[str, ...] = ()
    """nodes that the accelerator does not take and the CPU runs; always empty where the CPU was asked for"""
    ready: Callable[[Array], Any] | None = None
    """what `timed` takes, made of a batch once, before it is timed; None: `run` is timed, with the batch itself"""
    timed: Callable[[Any], Any] | None = None
    inside: Callable[[], float] | None = None
    """how long the last inference took by the runtime's own clock, without the call from Python, in ms; None: it has none"""


class NotThereError(Exception):
    """The asked provider or device is not on this machine, does not start, or takes nothing of the file: never the CPU in its place."""


def load_onnxruntime(
    model: str,
    threads: int,
    hint: str,
    provider: str = "CPUExecutionProvider",
    optimized: str | None = None,
    profiled: str | None = None,
    sides: dict[str, int] | None = None,
) -> Loaded:
    """The file in ONNX Runtime; `hint` has no meaning here. Raises NotThereError.

    `optimized`: where to write the graph that it made of the file; `profiled`: start of the path of the profile that `end_profiling` writes;
    `sides`: of the input's free sides, by name, the lengths that are to be fixed.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise NotThereError(f"this onnxruntime {onnxruntime.__version__} has no {provider}, it has {', '.join(there)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if provider == "XnnpackExecutionProvider" else threads  # XNNPACK brings its own threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # Threads spin inside a run, as deployed, but not after it: they would take the cores of the model measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimized is not None:
        options.optimized_model_filepath = optimized
        # the weights beside it: what the graph became is read without them
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", Path(optimized).name + ".weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
    if profiled is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profiled
    for side, length in (sides or {}).items():
        options.add_free_dimension_override_by_name(side, length)
    if provider == "XnnpackExecutionProvider":  # its threads and spinning ones would take each other's cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == "OpenVINOExecutionProvider":  # it fuses by itself, and does not know what ONNX Runtime fuses
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with contextlib.redirect_stdout(sys.stderr):  # onnxruntime prints that it falls back, which is refused below
        session = onnxruntime.InferenceSession(model, options, providers=_providers(provider, threads, there))
    session.disable_fallback()
    if provider not in session.get_providers():
        raise NotThereError(f"{provider} is in this onnxruntime {onnxruntime.__version__} but does not start; its libraries or its device are missing")
    given = session.get_inputs()
    sizes = [size if isinstance(size, int) else None for size in given[0].shape]
    name, outputs = given[0].name, [output.name for output in session.get_outputs()]

    def run(batch: Array) -> Array:
        return session.run(outputs[:1], {name: batch})[0]

    kind = given[0].type if len(given) == 1 else f"{len(given)} inputs"
    fell_back: tuple[str, ...] = ()
    if provider != "CPUExecutionProvider" and hasattr(session, "get_provider_graph_assignment_info"):
        fell_back = _fell_back(_assigned(session), provider)
    elif provider != "CPUExecutionProvider" and profiled is None:  # before ONNX Runtime 1.24
        fell_back = _fell_back(_seen_running(model, options, _providers(provider, threads, there)), provider)
    return Loaded(run, session, name, kind, sizes[0] if sizes else None, tuple(sizes[1:]), len(outputs), fell_back)


def _providers(provider: str, threads: int, there: list[str]) -> list[Any]:
    """In order of preference. The CPU takes what the provider does not; what that is stands in `Loaded.fell_back`."""
    settings = {
        "XnnpackExecutionProvider": {"intra_op_num_threads": str(threads)},
        "OpenVINOExecutionProvider": {"device_type": "CPU", "num_of_threads": str(threads), "num_streams": "1", "precision": "ACCURACY"},
        "TensorrtExecutionProvider": {"trt_int8_enable": "1"},  # takes Q/DQ as they stand; float parts stay float32
    }
    if provider == "CPUExecutionProvider":
        return [provider]
    beside = [name for name in ("CUDAExecutionProvider",) if provider == "TensorrtExecutionProvider" and name in there]
    return [(provider, settings.get(provider, {})), *beside, "CPUExecutionProvider"]


def _fell_back(nodes: list[tuple[str, str]], provider: str) -> tuple[str, ...]:
    """The nodes that another provider runs, of all with who runs them; none are known where the list is empty."""
    others = [name for name, by in nodes if by != provider]
    if nodes and len(others) == len(nodes):
        raise NotThereError(f"{provider} takes none of the {len(others)} nodes of this file: all would run on the CPU")
    return tuple(others)


def _assigned(session: Any) -> list[tuple[str, str]]:
    """Each node of the file and who runs it, by ONNX Runtime's own record."""
    return [(node.name or node.op_type, part.ep_name) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]


def _seen_running(model: str, options: Any, providers: list[Any]) -> list[tuple[str, str]]:
    """The same of the optimised graph, by the profile of one run on zeros; empty where these do not run, for a side that is free may not be 1."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=providers)
        given = session.get_inputs()[0]
        try:
            session.run(None, {given.name: np.zeros([side if isinstance(side, int) else 1 for side in given.shape], np.float32)})
        except Exception as error:  # onnxruntime's types have no common base
            sys.stderr.write(f"who runs which node is not known: {error}\n")
            return []
        events = json.loads(Path(session.end_profiling()).read_text())
    names = [(event["name"], event["args"]["provider"]) for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
    return [(name[: -len("_kernel_time")], by) for name, by in names if name.endswith("_kernel_time")]


def import_openvino() -> Any:
    """The module, imported without the report of its use that it would send to its makers. Raises ImportError."""
    name = "openvino_telemetry"
    missing = object()
    known = sys.modules.get(name, missing)
    sys.modules[name] = None  # type: ignore[assignment]  # it is optional, and this makes its import fail
    try:
        import openvino
    finally:
        if known is missing:
            del sys.modules[name]
        else:
            sys.modules[name] = known  # type: ignore[assignment]
    return openvino


def load_openvino(model: str, threads: int, hint: str, device: str = "CPU", profiled: bool = False, shape: list[int] | None = None, streams: int = 1) -> Loaded:
    """The file (.onnx or .xml) in an OpenVINO plug-in: float parts in float32 where the device has it, no model cache.

    `streams`: how many callers it answers at a time, each with `threads` threads; `profiled`: with the time of each node;
    `shape`: of the input, where its free sides are to be fixed. Raises NotThereError.
    """
    openvino = import_openvino()
    core = openvino.Core()
    there = core.available_devices
    if not any(name.split(".")[0] == device for name in there):  # GPU.0, GPU.1 where there are several
        raise NotThereError(f"OpenVINO finds no {device} on this machine, it finds {', '.join(there)}")
    settings = {
        "EXECUTION_MODE_HINT": "ACCURACY",  # without it float layers may silently run in bf16 or f16
        "PERFORMANCE_HINT": hint.upper(),
        "NUM_STREAMS": streams,  # more than there are callers would only take threads from each
        "CACHE_DIR": "",
    }
    if device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = threads * streams
    elif device == "NPU":  # it computes in float16 what is not int8, and has no streams to choose
        del settings["EXECUTION_MODE_HINT"], settings["NUM_STREAMS"]
    if profiled:
        settings["PERF_COUNT"] = True
    read = core.read_model(model)
    if shape is not None:
        read.reshape(shape)
    compiled = core.compile_model(read, device, settings)
    request = compiled.create_infer_request()
    given = compiled.inputs
    sizes = [None if size.is_dynamic else size.get_length() for size in given[0].get_partial_shape()]

    def run(batch: Array) -> Array:
        return request.infer([batch], share_inputs=True, share_outputs=True)[0]

    kind = "tensor(float)" if given[0].get_element_type().get_type_name() == "f32" else given[0].get_element_type().get_type_name()
    kind = kind if len(given) == 1 else f"{len(given)} inputs"
    loaded = Loaded(run, compiled, given[0].get_any_name(), kind, sizes[0] if sizes else None, tuple(sizes[1:]), len(compiled.outputs))

    def timed(tensor: Any) -> None:
        request.set_input_tensor(tensor)
        request.infer()

    # Making a tensor of an array costs 30 to 50 µs in Python, as much as a small network: it is OpenVINO's Python that takes them, not the file.
    loaded.ready, loaded.timed = (lambda batch: openvino.Tensor(batch, shared_memory=True)), timed
    loaded.inside = lambda: float(request.latency)
    return loaded


def load(runtime: str, model: str, threads: int, hint: str, streams: int = 1) -> Loaded:
    """The file in the named runtime, for `streams` callers at a time. Raises NotThereError."""
    if runtime in PROVIDERS:
        return load_onnxruntime(model, threads, hint, PROVIDERS[runtime])
    return load_openvino(model, threads, hint, OPENVINO_DEVICES[runtime], streams=streams)


def module_of(runtime: str) -> str:
    """The Python module that a runtime of this file is part of."""
    return runtime.split("-")[0]


def installed(module: str) -> str | None:
    """The version of a runtime's module, whatever the name of its distribution; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    for distribution in DISTRIBUTIONS[module]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Installed runtimes by name; nothing is imported."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    found.update({module: version for module in DISTRIBUTIONS for version in [installed(module)] if version})
    return found


def runtimes() -> dict[str, str]:
    """Installed runtimes by name, and their providers and devices beside the CPU, with the same version (`onnxruntime-xnnpack`)."""
    found = versions()
    if "onnxruntime" in found:
        there = _tried(_providers_that_start)
        found.update({name: found["onnxruntime"] for name, provider in PROVIDERS.items() if provider in there})
    if "openvino" in found:
        there = [name.split(".")[0] for name in _tried(lambda: __import__("openvino").Core().available_devices)]
        found.update({name: found["openvino"] for name, device in OPENVINO_DEVICES.items() if device in there})
    return found


def _providers_that_start() -> list[str]:
    """A wheel names the providers that it was built with; whether their libraries and their chip are here shows when one is started."""
    import onnxruntime

    def starts(provider: str) -> bool:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        with contextlib.redirect_stdout(sys.stderr):  # onnxruntime prints that it falls back
            session = onnxruntime.InferenceSession(_IDENTITY, options, providers=[provider, "CPUExecutionProvider"])
        return provider in session.get_providers()

    return [name for name in onnxruntime.get_available_providers() if name not in _WITH_LIBRARIES or starts(name)]


def _tried(ask: Callable[[], list[str]]) -> list[str]:
    try:
        return ask()
    except Exception as error:  # a runtime that cannot be imported has no providers; loading a model there says why
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return []


def facts() -> dict[str, Any]:
    """What this machine tells of itself; None where it does not."""
    cpuinfo = _text("/proc/cpuinfo") or ""
    return {
        "kind": "facts",
        "protocol": PROTOCOL,
        "system": platform.system(),
        "cpu": _cpu_name(cpuinfo),
        "architecture": platform.machine(),
        "emulator": emulator(),
        "flags": _flags(cpuinfo),
        "cores": usable_cores(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_mhz": clock_mhz(),
        "temperature_celsius": temperature_celsius(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "runtimes": runtimes() if emulator() is None else versions(),  # an emulator is slow to import them, and has the CPU alone
    }


def emulator(process: str = "/proc/thread-self/exe", machine: str | None = None) -> str | None:
    """The program that only plays this processor (`qemu-aarch64-static`), as in containers of another architecture; None where there is none."""
    # qemu answers /proc/self/exe with the program that it emulates; this other name of it reaches the kernel, which names qemu.
    try:
        name = Path(os.readlink(process)).name  # noqa: PTH115  # Path.readlink is not in Python 3.8
        with Path(process).open("rb") as program:
            head = program.read(20)
    except OSError:
        return None
    own = ELF_MACHINES.get((machine or platform.machine()).lower())
    foreign = own is not None and head[:4] == b"\x7fELF" and head[5] == 1 and struct.unpack("<H", head[18:20])[0] not in own
    return name if foreign or name.startswith("qemu-") else None


def usable_cores() -> int:
    """The logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clock_mhz() -> float | None:
    """The present clock of the first CPU in MHz."""
    current = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if current and current.isdigit():
        return int(current) / 1000
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        if line.lower().startswith("cpu mhz"):
            return float(line.split(":")[1])
    return None


def temperature_celsius() -> float | None:
    """The hottest thermal zone in °C."""
    zones = [_text(str(path)) for path in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))] if Path("/sys/class/thermal").is_dir() else []
    degrees = [int(zone) / 1000 for zone in zones if zone and zone.lstrip("-").isdigit()]
    return max(degrees) if degrees else None


def affinity() -> list[int]:
    """The logical CPUs that this process may use now; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def bind(allowed: list[int], threads: int) -> list[int]:
    """Keeps this process, and the threads that it starts from now on, on the cores that suit `threads` best; these cores.

    The fastest kind of core first (big before little), then the least busy; a second hyper-thread of a core only when there is no other core left.
    """
    if not allowed:
        return []
    chosen = allowed
    if threads < len(allowed):
        before = {core: _busy_ticks(core) for core in allowed}
        time.sleep(0.05)
        ranked = sorted(allowed, key=lambda core: (-_capacity(core), _busy_ticks(core) - before[core], core))
        first = [core for index, core in enumerate(ranked) if not siblings(core).intersection(ranked[:index])]
        chosen = sorted([*first, *(core for core in ranked if core not in first)][:threads])
    os.sched_setaffinity(0, chosen)
    return chosen


def siblings(core: int) -> set[int]:
    """The logical CPUs that share this one's physical core, itself among them."""
    found: set[int] = {core}
    for part in (_text(f"{_CPUS}/cpu{core}/topology/thread_siblings_list") or "").split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return found


def core_clock_mhz(core: int) -> float | None:
    """The present clock of one CPU in MHz, None where cpufreq does not tell: /proc/cpuinfo would, but takes milliseconds to read."""
    current = _text(f"{_CPUS}/cpu{core}/cpufreq/scaling_cur_freq")
    return int(current) / 1000 if current and current.isdigit() else None


def throttle_count(sys_folder: str = "/sys") -> int | None:
    """How often the hardware slowed itself down (heat, power, low voltage) since it was started; None: it does not count."""
    root = Path(sys_folder)
    paths = list(root.glob("devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"))
    for device in root.glob("class/thermal/cooling_device*"):
        if "cpufreq" in (_text(str(device / "type")) or ""):  # ARM: the clock is lowered in steps; a fan is such a device, too
            paths.append(device / "stats" / "total_trans")
    counts = [int(text) for text in (_text(str(path)) for path in paths) if text and text.isdigit()]
    return sum(counts) if counts else None


def throttled_now(sys_folder: str = "/sys") -> bool | None:
    """Whether a Raspberry Pi is held back at this moment (its firmware's bits 0 to 3: voltage, clock cap, throttled, soft limit); None: no such file."""
    for path in sorted(Path(sys_folder).glob("devices/platform/soc*/*firmware/get_throttled")):
        text = _text(str(path)) or ""
        if re.fullmatch("(0x)?[0-9a-f]+", text):
            return bool(int(text, 16) & 0xF)
    return None


class Watch:
    """What the machine does while it measures: clock, heat, throttling, who else computes on our cores."""

    def __init__(self, cores: list[int]) -> None:
        self.cores = cores
        self.begin, self.looked = time.perf_counter(), 0.0
        self.own, self.stat, self.throttles, self.switches = self._own(), self._stat(), throttle_count(), self._switches()
        self.clocks: list[float] = []
        self.heat: list[float] = []
        self.held = throttled_now()
        self.look()

    def look(self) -> None:
        """Between two turns, at most four times a second, so that looking costs nothing that is seen."""
        now = time.perf_counter()
        if now - self.looked < 0.25 and self.looked:
            return
        self.looked = now
        clocks = [clock for clock in map(core_clock_mhz, self.cores) if clock is not None]
        self.clocks += [min(clocks)] if clocks else []
        degrees = temperature_celsius()
        self.heat += [degrees] if degrees is not None else []
        if self.held is not None:
            self.held = self.held or bool(throttled_now())

    def conditions(self) -> dict[str, Any]:
        """All of it since this watch began. Shares are of the time of our cores; None where the machine does not tell."""
        self.looked = 0.0
        self.look()
        spent = time.perf_counter() - self.begin
        busy, stolen = self._stat()
        own, switches, throttles = self._own(), self._switches(), throttle_count()
        ticks = max(1.0, spent * len(self.cores) * _TICKS) if self.cores else None
        others = max(0.0, busy - self.stat[0] - (own - self.own) * _TICKS) / ticks if ticks else None
        usable = set(self.cores)
        return {
            "seconds": spent,
            "cores": self.cores,
            "siblings": sorted(set().union(*(siblings(core) for core in self.cores)) - usable) if self.cores else [],
            "clock_mhz": [self.clocks[0], min(self.clocks), self.clocks[-1]] if self.clocks else [None, None, None],
            "temperature_celsius": [self.heat[0], max(self.heat), self.heat[-1]] if self.heat else [None, None, None],
            "throttle_events": None if throttles is None or self.throttles is None else max(0, throttles - self.throttles),
            "held_back": self.held,
            "others_share": None if others is None else min(1.0, others),
            "stolen_share": min(1.0, max(0.0, stolen - self.stat[1]) / ticks) if ticks else None,
            "switches_waiting": switches[0] - self.switches[0],
            "switches_preempted": switches[1] - self.switches[1],
        }

    def _stat(self) -> tuple[float, float]:
        """Ticks that our cores computed for anybody, and ticks that the hypervisor took."""
        rows = [_cpu_ticks(core) for core in self.cores]
        return sum(sum(row[:3]) + sum(row[5:7]) for row in rows), sum(row[7] for row in rows)

    def _own(self) -> float:
        times = os.times()
        return times.user + times.system

    def _switches(self) -> tuple[int, int]:
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_nvcsw, usage.ru_nivcsw


def _cpu_ticks(core: int) -> list[int]:
    """The core's line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    for line in (_text("/proc/stat") or "").splitlines():
        words = line.split()
        if words and words[0] == f"cpu{core}":
            return [int(word) for word in words[1:9]] + [0] * max(0, 9 - len(words))
    return [0] * 8


def _busy_ticks(core: int) -> int:
    row = _cpu_ticks(core)
    return sum(row[:3]) + sum(row[5:8])


def _capacity(core: int) -> int:
    """How fast the core is beside the others: ARM's relative capacity, or its highest clock; 0 where all are alike."""
    for path in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = _text(f"{_CPUS}/cpu{core}/{path}")
        if text and text.isdigit():
            return int(text)
    return 0


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far."""
    # VmHWM belongs to this program alone; ru_maxrss also counts the parent's memory at the moment of the fork.
    for line in (_text("/proc/self/status") or "").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cold_start(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """Load, first inference and peak memory of one model; this process has loaded nothing before. The runtime's import is not counted."""
    sample = np.load(request["inputs"])[: request["batch"]].copy()
    __import__(module_of(request["runtime"]))
    begin = time.perf_counter_ns()
    loaded = load(request["runtime"], request["model"], request["threads"], request["hint"])
    ready = time.perf_counter_ns()
    loaded.run(sample)
    answered = time.perf_counter_ns()
    tell("start", load_ns=ready - begin, first_inference_ns=answered - ready, peak_memory_bytes=peak_memory_bytes())


def bench(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """The process put on cores of its own, then every comparison in turn: all its models loaded, warmed up, then measured in interleaved windows."""
    tell("hello", protocol=PROTOCOL, runtimes=versions())
    told = time.perf_counter_ns()
    # Once for all: a runtime keeps its threads for the next model, on the cores where they were started, and another choice would part it from them.
    cores = bind(affinity(), max(comparison["threads"] * comparison.get("streams", 1) for comparison in request["comparisons"]))
    for comparison in request["comparisons"]:
        _compare(comparison, request, cores, told, tell)


def _compare(comparison: dict[str, Any], request: dict[str, Any], cores: list[int], told: int, tell: Callable[..., None]) -> None:
    samples = np.load(comparison["inputs"])
    streams, together = comparison.get("streams", 1), comparison.get("mode", "single-stream") == "throughput"
    runtime, threads, hint = comparison["runtime"], comparison["threads"], comparison["hint"]
    models = [(model["name"], load(runtime, model["path"], threads, hint, streams)) for model in comparison["models"]]
    batches = _batches(samples, comparison["batch"])
    kind = Meter if not together else Requests if runtime in OPENVINO_DEVICES else Crowd
    meters = [kind(name, loaded, batches, request["window_seconds"], streams) for name, loaded in models]
    before = clock_mhz(), temperature_celsius()
    gc.collect()
    gc.disable()  # a pause of this script's own memory is not the model's latency
    try:
        warm = _warm_up(meters, request["warmup_seconds"])
        watch = Watch(cores)
        windows = _measured(meters, request, watch)
        conditions = watch.conditions()
    finally:
        gc.enable()
    tell("elapsed", ns=time.perf_counter_ns() - told)
    for meter in meters:  # told only now: whoever reads would take a core from what is measured
        if together:
            tell("throughput", comparison=comparison["id"], model=meter.name, windows=windows[meter.name])
        else:
            own_clock = {} if meter.inside is None else {"inside_ns": meter.inside_ns}
            tell("windows", comparison=comparison["id"], model=meter.name, ns=windows[meter.name], **own_clock)
    after = clock_mhz(), temperature_celsius()
    clock, heat = [before[0], after[0]], [before[1], after[1]]
    tell("comparison", id=comparison["id"], warm=warm, clock_mhz=clock, temperature_celsius=heat, conditions=conditions)


COUNTED, INTERRUPTED, UNCOUNTED = 0, 1, 2
"""Of a run of `Paced`: undisturbed; another program had the core meanwhile; the first of a while, which pays for what others left in the caches."""


class Paced:
    """Runs a model for short whiles. One that was interrupted is followed by a rest: who used less than its part of a core is interrupted less."""

    LONGEST_REST = 0.03

    def __init__(self, run: Callable[[Array], Any], batch: Array) -> None:
        self.run, self.batch, self.rest = run, batch, 0.0

    def runs(self, seconds: float) -> list[list[int]]:
        """[nanoseconds, state] of each run of about `seconds`, and at least one that counts or was interrupted."""
        if self.rest:
            time.sleep(self.rest)
        taken: list[list[int]] = []
        before, begun = interruptions(), time.perf_counter_ns()
        spent = 0
        while spent < seconds * 1e9 or taken[-1][1] == UNCOUNTED:
            begin = time.perf_counter_ns()
            self.run(self.batch)
            now, after = time.perf_counter_ns(), interruptions()
            short = now - begin < seconds * 1e9  # what takes longer needs no warm caches
            taken.append([now - begin, UNCOUNTED if short and not taken else INTERRUPTED if after != before else COUNTED])
            before, spent = after, now - begun
        hit = any(state == INTERRUPTED for _, state in taken)
        self.rest = min(self.LONGEST_REST, max(0.002, 2 * self.rest)) if hit else self.rest / 2 if self.rest > 0.001 else 0.0
        return taken


def interruptions() -> int:
    """How often another program took a core from this process so far, all its threads together."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def in_turn(models: dict[str, Paced], while_seconds: float, seconds: float, limit_seconds: float) -> dict[str, list[list[list[int]]]]:
    """The whiles of each model, in turn, until each was run for `seconds` and has the undisturbed runs that a time needs, or the limit is reached."""
    for paced in models.values():  # warms up
        paced.runs(2 * while_seconds)
    found: dict[str, list[list[list[int]]]] = {name: [] for name in models}
    end = time.perf_counter() + limit_seconds
    left = set(models)
    while left and (time.perf_counter() < end or not all(len(own) > 1 for own in found.values())):
        for name, paced in models.items():
            slow = bool(found[name]) and found[name][-1][0][0] > while_seconds * 1e9
            if name in left or not slow:  # the others go on meanwhile, so that all meet the same machine
                found[name].append(paced.runs(while_seconds))
            runs = [run for own in found[name] for run in own]
            if sum(ns for ns, _ in runs) >= seconds * 1e9 and sum(state == COUNTED for _, state in runs) >= NEEDED:
                left.discard(name)
    return found


def copy_rate(size: int) -> float:
    """Bytes read and written in a second by a plain copy in one thread that moves `size` bytes in all: what memory (or the cache that holds it) gives."""
    source = np.ones(max(1, size // 2), np.uint8)
    target = np.empty_like(source)
    taken = []
    for _ in range(5):
        begin = time.perf_counter_ns()
        np.copyto(target, source)
        taken.append(time.perf_counter_ns() - begin)
    return float(2 * source.nbytes / max(1, min(taken[1:])) * 1e9)


def profiled_onnxruntime(
    model: str, threads: int, hint: str, samples: Array, seconds: float, limit_seconds: float, provider: str = "CPUExecutionProvider"
) -> dict[str, Any]:
    """What ONNX Runtime made of the file: its graph without large weights (`graph`, None of an accelerator's), and of each node (`nodes`), in the order of
    running, the time in one run (tenth percentile of the undisturbed), traffic and type; `undisturbed`: how many such runs there were, of `runs`.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx" if provider == "CPUExecutionProvider" else None
        loaded = load_onnxruntime(model, threads, hint, provider, optimized=str(written) if written else None, profiled=str(Path(folder) / "profile"))
        batch = np.ascontiguousarray(samples[np.arange(loaded.batch or 1) % len(samples)])
        for _ in range(_WARM_RUNS):
            loaded.run(batch)
        states: list[int] = []
        paced, begin = Paced(loaded.run, batch), time.perf_counter()
        while len(states) < _MOST_PROFILED:
            states += [state for _, state in paced.runs(min(seconds, 0.003))]
            spent, quiet = time.perf_counter() - begin, states.count(COUNTED)
            if (spent >= seconds and quiet >= NEEDED) or spent >= limit_seconds:
                break
        events = json.loads(Path(loaded.handle.end_profiling()).read_text())
        graph = written.read_bytes() if written else None
    nodes = _profiled_nodes(events, [UNCOUNTED] * _WARM_RUNS + states)
    return {"nodes": nodes, "graph": graph, "undisturbed": states.count(COUNTED), "runs": len(states)}


NEEDED = 11
"""Undisturbed runs that a time rests on: the fewest that support a median (`latency.runs_needed`)."""
_WARM_RUNS = 3
_MOST_PROFILED = 600  # the profile is kept in memory, and written as text


def _profiled_nodes(events: list[dict[str, Any]], states: list[int]) -> list[dict[str, Any]]:
    """The nodes of a profile of `states` runs. Where too few were undisturbed, times are of those that were not as well."""
    chosen = [number for number, state in enumerate(states) if state == COUNTED]
    chosen = chosen if len(chosen) >= NEEDED else list(range(_WARM_RUNS, len(states)))
    kept: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kept.setdefault(event["name"][: -len("_kernel_time")], []).append(event)
    nodes = []
    for name, own in kept.items():
        each = max(1, len(own) // len(states))  # nodes without a name share one
        taken = sorted(sum(event["dur"] for event in own[each * number : each * (number + 1)]) for number in chosen if each * (number + 1) <= len(own))
        last = own[-each:]
        kinds = [kind for event in last for value in event["args"].get("output_type_shape", []) for kind in value][:1]
        nodes.append(
            {
                "name": name,
                "operator": last[0]["args"]["op_name"],
                "provider": last[0]["args"].get("provider", ""),
                "microseconds": float(taken[len(taken) // 10]) if taken else 0.0,
                "bytes_read": sum(int(event["args"].get("activation_size", 0)) for event in last),  # weights that were packed are not in parameter_size
                "bytes_written": sum(int(event["args"].get("output_size", 0)) for event in last),
                "type": kinds[0] if kinds else "",
            }
        )
    return nodes


def predict(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """The logits of each batch that comes in: its length in 8 bytes, then an .npy with float32 (n, *shape)."""
    loaded = load(request["runtime"], request["model"], request["threads"], request["hint"])
    while True:
        head = sys.stdin.buffer.read(8)
        if not head:
            return
        samples = np.load(io.BytesIO(sys.stdin.buffer.read(struct.unpack(">Q", head)[0])), allow_pickle=False)
        logits = _logits(loaded, samples)
        tell("logits", shape=list(logits.shape), float32=base64.b64encode(logits.astype("<f4").tobytes()).decode())


def energy(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """Joules of every model in turn, round by round, and of the machine at rest; or why there is no counter."""
    counter = find_counter()
    if isinstance(counter, str):
        tell("no-energy", reason=counter)
        return
    samples = np.load(request["inputs"])
    batches = _batches(samples, request["batch"])
    runs: dict[str | None, Callable[[Array], Array]] = {None: lambda batch: time.sleep(0.01)}
    for model in request["models"]:
        runs[model["name"]] = load(request["runtime"], model["path"], request["threads"], request["hint"]).run
    rounds: dict[str | None, list[list[float]]] = {name: [] for name in runs}
    for _ in range(request["rounds"]):
        for name, run in runs.items():
            run(batches[0])
            rounds[name].append(counter.spent(run, batches, request["seconds"]))
    for name, measured in rounds.items():
        tell("energy", model=name, counter=counter.name, rounds=measured)


class EnergyCounter:
    """What counts the joules of this machine: files with µJ that only grow (RAPL, hwmon), or with the present µW (hwmon)."""

    def __init__(self, name: str, energy_files: list[str], power_files: list[str]) -> None:
        self.name, self.energy_files, self.power_files = name, energy_files, power_files

    def spent(self, run: Callable[[Array], Array], batches: list[Array], seconds: float) -> list[float]:
        """Joules, runs and seconds of running for about `seconds`."""
        watts: list[float] = []
        runs, before = 0, self._microjoules()
        begin = now = looked = time.perf_counter()
        while now - begin < seconds:
            run(batches[runs % len(batches)])
            runs += 1
            now = time.perf_counter()
            if self.power_files and now - looked > 0.05:  # between two runs, so that looking is not counted as theirs for long
                watts.append(sum(int(_text(path) or 0) for path in self.power_files) / 1e6)
                looked = now
        if self.power_files:
            return [statistics.fmean(watts) * (now - begin) if watts else 0.0, runs, now - begin]
        after = self._microjoules()
        grown = [self._grown(path, *values) for path, *values in zip(self.energy_files, before, after)]  # noqa: B905  # Python 3.8 has no strict=
        joules = sum(grown) / 1e6
        return [joules, runs, now - begin]

    def _microjoules(self) -> list[int]:
        return [int(_text(path) or 0) for path in self.energy_files]

    def _grown(self, path: str, old: int, new: int) -> int:
        if new >= old:
            return new - old
        span = _text(str(Path(path).with_name("max_energy_range_uj")))  # it began again at 0
        return new - old + int(span) if span else 0


def find_counter(sys_folder: str = "/sys") -> EnergyCounter | str:
    """The energy counter of this machine, or why there is none: RAPL's packages, else an hwmon energy meter, else hwmon power sensors."""
    root = Path(sys_folder)
    kinds = [
        ("RAPL package energy", "class/powercap/*/energy_uj", r"intel-rapl:\d+|amd-rapl:\d+"),
        ("hwmon energy meter", "class/hwmon/*/energy*_input", None),
        ("hwmon power sensor, sampled", "class/hwmon/*/power*_input", None),
    ]
    locked = []
    for name, pattern, folder in kinds:
        found = [path for path in sorted(root.glob(pattern)) if folder is None or re.fullmatch(folder, path.parent.name)]
        readable = [str(path) for path in found if (_text(str(path)) or "").isdigit()]
        if readable:
            power = name.startswith("hwmon power")
            return EnergyCounter(name, [] if power else readable, readable if power else [])
        locked += [str(path) for path in found[:1]]
    if locked:
        return f"not measured: {locked[0]} cannot be read by this user"
    return "not measured: no energy counter (neither RAPL in /sys/class/powercap nor an energy or power meter in /sys/class/hwmon)"


class Meter:
    """One model of a comparison, measured a window at a time; `medians_ns` of its windows so far.

    `inside_ns`: the same runs by the runtime's own clock, where it has one, window by window since the warm-up.
    """

    def __init__(self, name: str, loaded: Loaded, batches: list[Array], window_seconds: float, streams: int = 1) -> None:
        self.name = name
        self.run: Callable[[Any], Any] = loaded.timed or loaded.run
        self.inside = loaded.inside
        self.inside_ns: list[list[int]] = []
        self.batches = [loaded.ready(batch) for batch in batches] if loaded.ready else batches
        self.window_ns = int(window_seconds * 1e9)
        self.medians_ns: list[float] = []
        self.position = 0
        self.runs_total = 0

    def window(self) -> list[Any]:
        """The nanoseconds of each run of one window. One run before it is not counted: it pays for the other models' use of the caches."""
        runs = max(1, int(self.window_ns / self.medians_ns[-1])) if self.medians_ns else 1
        chosen = [self.batches[(self.position + step) % len(self.batches)] for step in range(runs + 1)]
        self.position += runs + 1
        run, clock, inside = self.run, time.perf_counter_ns, self.inside
        run(chosen[0])
        taken, told = [], []
        for batch in chosen[1:]:
            begin = clock()
            run(batch)
            taken.append(clock() - begin)
            if inside is not None:  # between two runs: reading it is not the model's time
                told.append(max(1, round(1e6 * inside())))
        self.inside_ns.append(told)
        self.medians_ns.append(statistics.median(taken))
        self.runs_total += runs
        return taken

    def warm(self) -> bool:
        """Whether the medians of the last windows lie within 5 % of each other."""
        last = self.medians_ns[-STABLE_WINDOWS:]
        return len(self.medians_ns) > STABLE_WINDOWS and max(last) <= min(last) * (1 + STABLE_SPREAD)


class Crowd(Meter):
    """One model that several threads ask at the same time, each as soon as it has its answer; a window gives [runs, nanoseconds] of each.

    Sessions of ONNX Runtime take that, and hold no lock of Python's meanwhile.
    """

    def __init__(self, name: str, loaded: Loaded, batches: list[Array], window_seconds: float, streams: int) -> None:
        super().__init__(name, loaded, batches, window_seconds)
        self.streams = streams
        self.pool = ThreadPoolExecutor(streams)

    def window(self) -> list[Any]:
        """Every caller begins with a run that is not counted, and goes on until the time is over."""
        taken = self.taken()
        self.medians_ns.append(1 / sum(runs / ns for runs, ns in taken))  # nanoseconds a run, all callers together
        self.runs_total += sum(runs for runs, _ in taken)
        return taken

    def taken(self) -> list[list[int]]:
        """One window: of each caller [runs, nanoseconds]."""
        start = threading.Barrier(self.streams)
        return [answer.result() for answer in [self.pool.submit(self._asking, start, offset) for offset in range(self.streams)]]

    def _asking(self, start: threading.Barrier, offset: int) -> list[int]:
        start.wait()
        self.run(self.batches[offset % len(self.batches)])
        runs, begin = 0, time.perf_counter_ns()
        while True:
            self.run(self.batches[(offset + runs) % len(self.batches)])
            runs += 1
            spent = time.perf_counter_ns() - begin
            if spent >= self.window_ns:
                return [runs, spent]


class Requests(Crowd):
    """The same for OpenVINO: this thread keeps as many requests under way as there are callers.

    Two Python threads in `infer` of two requests wait for each other for ever, sooner or later (OpenVINO 2026.4: one makes a tensor and holds Python's
    lock, the other gives its tensor back and waits for it). So tensors are made once, before, and one thread alone asks.
    """

    def __init__(self, name: str, loaded: Loaded, batches: list[Array], window_seconds: float, streams: int) -> None:
        super().__init__(name, loaded, batches, window_seconds, streams)
        self.requests = [loaded.handle.create_infer_request() for _ in range(streams)]

    def taken(self) -> list[list[int]]:
        """See `Crowd.taken`."""
        for number in range(self.streams):
            self._ask(number, number)
        for request in self.requests:
            request.wait()
        runs, spent, begin = [0] * self.streams, [0] * self.streams, time.perf_counter_ns()
        for number in range(self.streams):
            self._ask(number, number)
        while not all(spent):
            for number, request in enumerate(self.requests):
                if spent[number]:
                    continue
                request.wait()
                runs[number] += 1
                now = time.perf_counter_ns() - begin
                if now >= self.window_ns:
                    spent[number] = now
                else:
                    self._ask(number, number + runs[number])
        return [list(pair) for pair in zip(runs, spent)]  # noqa: B905  # Python 3.8 has no strict=

    def _ask(self, number: int, position: int) -> None:
        request = self.requests[number]
        request.set_input_tensor(self.batches[position % len(self.batches)])
        request.start_async()


def _warm_up(meters: list[Meter], limit_seconds: float) -> dict[str, bool]:
    end = time.perf_counter() + limit_seconds
    while not all(meter.warm() for meter in meters) and time.perf_counter() < end:
        for meter in meters:
            meter.window()
    warm = {meter.name: meter.warm() for meter in meters}
    for meter in meters:
        meter.runs_total, meter.inside_ns = 0, []
    return warm


def _measured(meters: list[Meter], request: dict[str, Any], watch: Watch) -> dict[str, list[Any]]:
    windows: dict[str, list[Any]] = {meter.name: [] for meter in meters}
    begin, turn = time.perf_counter(), 0
    while True:
        spent = time.perf_counter() - begin
        enough = all(meter.runs_total >= request["runs"] for meter in meters) and turn >= request["windows"]
        if (enough and spent >= request["seconds"]) or (turn > 0 and spent >= request["limit_seconds"]):
            return windows
        shift = turn % len(meters)  # every model is first, second, … equally often
        for meter in meters[shift:] + meters[:shift]:
            windows[meter.name].append(meter.window())
        watch.look()
        turn += 1


def _batches(samples: Array, size: int) -> list[Array]:
    count = max(1, min(64, len(samples) // size))
    return [np.ascontiguousarray(samples[(np.arange(size) + index * size) % len(samples)]) for index in range(count)]


def _logits(loaded: Loaded, samples: Array) -> Array:
    """(n, classes) float32. A file with a static batch gets the samples in pieces, the last one filled up with its last sample."""
    size = loaded.batch or len(samples)
    pieces = []
    for start in range(0, len(samples), size):
        piece = samples[start : start + size]
        filled = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)]) if len(piece) < size else piece
        pieces.append(np.array(loaded.run(np.ascontiguousarray(filled)), dtype=np.float32)[: len(piece)])
    return np.concatenate(pieces)


def _cpu_name(cpuinfo: str) -> str:
    keys: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        keys.setdefault(key.strip().lower(), value.strip())
    board = _text("/proc/device-tree/model")
    named = keys.get("model name") or (board.rstrip("\0") if board else None)
    family = ", ".join(f"{word} {keys[word]}" for word in ("cpu family", "model", "stepping", "cpu part") if word in keys)
    name = named or platform.processor() or platform.machine()
    return f"{name} ({family})" if family else name


def _flags(cpuinfo: str) -> list[str]:
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.split(":")[0].strip() in ("flags", "Features")]
    return sorted(set(lines[0]).intersection(*lines)) if lines else []


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _teller(stream: TextIO) -> Callable[..., None]:
    def tell(kind: str, **content: Any) -> None:
        stream.write(json.dumps(dict(content, kind=kind)) + "\n")
        stream.flush()

    return tell


def main() -> int:
    """Answer one request; 0 when done, 1 after a `failure` line."""
    # What a runtime's native code prints must not stand between our lines: it goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tell = _teller(answers)
    try:
        command, request = sys.argv[1], json.loads(sys.stdin.buffer.readline().decode())
        if command == "probe":
            content = facts()
            tell(content.pop("kind"), **content)
        else:
            {"bench": bench, "start": cold_start, "energy": energy, "predict": predict}[command](request, tell)
    except Exception as error:  # whatever a runtime raises is told to the host, which decides
        tell("failure", message=f"{type(error).__name__}: {error}")
        return 1
    tell("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
