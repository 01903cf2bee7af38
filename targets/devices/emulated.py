"""A CPU that is not here, emulated by qemu-user: what its instruction set makes of a file, never how fast.

ARM CPUs run the runtime's real ARM build in a small userland (`userland.py`); x86 CPUs run this Python as it is. The
runtimes choose their kernels by /proc/cpuinfo and the processor's own answers, so the emulated program sees a cpuinfo
that says what the emulated CPU can do.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, JsonValue

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import write_text
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.device import Command, device_facts, identity_of
from kdpipe.targets.devices.messages import Facts, Message, PredictRequest, Request
from kdpipe.targets.devices.process import asked, predicted
from kdpipe.targets.devices.userland import PYTHON, SITE, cache_folder, require_prepared
from kdpipe.targets.measurements import DeviceFacts

PROBE_SECONDS = 300.0

_X86_64_V3 = "fpu cx8 cmov mmx sse sse2 pni ssse3 cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c fma bmi1 avx2 bmi2 lahf_lm abm"


@dataclass(frozen=True)
class Cpu:
    """A CPU model of qemu. `part`: ARM's part number (Arm Ltd.'s); `flags`: x86 only, ARM's are asked of the emulator."""

    title: str
    architecture: Literal["aarch64", "x86_64"]
    part: str = ""
    flags: str = ""


CPUS: Mapping[str, Cpu] = {
    "cortex-a53": Cpu("Cortex-A53", "aarch64", "0xd03"),
    "cortex-a72": Cpu("Cortex-A72", "aarch64", "0xd08"),
    "cortex-a76": Cpu("Cortex-A76", "aarch64", "0xd0b"),
    "neoverse-n1": Cpu("Neoverse-N1", "aarch64", "0xd0c"),
    "Haswell": Cpu("Haswell, AVX2 without VNNI", "x86_64", flags=_X86_64_V3),
}

# the kernel's names of the bits, in their order (arch/arm64/include/uapi/asm/hwcap.h)
_HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit "
    "uscat ilrcpc flagm ssbs sb paca pacg"
)
_HWCAP2 = "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 dgh rng bti"
_ASK_HWCAP = "import ctypes; ask = ctypes.CDLL(None).getauxval; ask.restype = ctypes.c_ulong; print(ask(16), ask(26))"  # AT_HWCAP, AT_HWCAP2


def _cpu(value: str) -> str:
    if value not in CPUS:
        raise ValueError(f"not one of {', '.join(CPUS)}")
    return value


class Emulated(BaseModel, extra="forbid", frozen=True):
    """A CPU emulated by qemu-user, for accuracy alone."""

    kind: Literal["emulated"] = Field(description="a CPU emulated by qemu-user: accuracy and agreement, never latency")
    cpu: Annotated[str, AfterValidator(_cpu)] = Field(description=f"qemu's name of the CPU: {', '.join(CPUS)}")
    userland: Path | None = Field(None, description="folder with an ARM Python, numpy and the runtime; default: one that 'kdpipe devices add' prepares")

    def device(self, name: str, project: Path) -> "EmulatedDevice":
        """The CPU; nothing is started yet."""
        return EmulatedDevice(name, self, project)

    def folder(self, project: Path) -> Path:
        """The userland's folder; of x86 CPUs the one where their cpuinfo lies."""
        return project / self.userland if self.userland else cache_folder(CPUS[self.cpu].architecture)


class EmulatedDevice:
    """A CPU that is emulated on this host."""

    def __init__(self, name: str, settings: Emulated, project: Path) -> None:
        self.name = name
        self.settings = settings
        self.cpu = CPUS[settings.cpu]
        self.folder = settings.folder(project)
        self.no_latency: str | None = f"not measured: device {name} is emulated (qemu's {settings.cpu}), and an emulator's time says nothing of the chip's"

    def connected(self) -> AbstractContextManager[None]:
        """Nothing to reach."""
        return nullcontext()

    def facts(self) -> DeviceFacts:
        """The emulated CPU; cores and memory are the host's."""
        for message in self.ask("probe", limit_seconds=PROBE_SECONDS):
            if isinstance(message, Facts):
                return device_facts(self.name, "emulated", message)
        raise UnavailableError("the emulated CPU told nothing of itself", at=f"device {self.name}", do="run it again")

    def identity(self) -> Mapping[str, JsonValue]:
        """See `identity_of`."""
        return identity_of(self.facts())

    def ask(self, command: Command, request: Request | None = None, *, limit_seconds: float) -> Iterator[Message]:
        """See `Device.ask`; only `probe` is answered, since all other commands time something."""
        if command != "probe":
            assert self.no_latency is not None
            raise UnavailableError(self.no_latency, at=f"device {self.name}", do="measure on a board: kdpipe devices add NAME --host USER@HOST")
        return asked(self._python, command, request, device=self.name, limit_seconds=limit_seconds, environment=self._environment)

    def predict(self, request: PredictRequest, batches: Iterable[Float32Array], *, limit_seconds: float) -> Iterator[Float32Array]:
        """See `Device.predict`."""
        return predicted(self._python, request, batches, device=self.name, limit_seconds=limit_seconds, environment=self._environment)

    @cached_property
    def _python(self) -> list[str]:
        """What stands before the agent's file."""
        emulator = require_emulator(self.cpu.architecture, at=f"device {self.name}")
        if self.cpu.architecture == "x86_64":
            if platform.machine() != "x86_64":
                raise UnavailableError(
                    f"{self.settings.cpu} is emulated with this machine's own Python, which is {platform.machine()}",
                    at=f"device {self.name}",
                    do="use an x86 machine",
                )
            return [emulator, "-cpu", self.settings.cpu, "-L", str(self._prefix(self.cpu.flags)), sys.executable]
        require_prepared(self.folder, at=f"device {self.name}", do=f"kdpipe devices add {self.name}")
        bare = [emulator, "-cpu", self.settings.cpu, "-L", str(self.folder), str(self.folder / PYTHON)]
        done = subprocess.run([*bare, "-c", _ASK_HWCAP], capture_output=True, text=True, env=self._environment, timeout=PROBE_SECONDS, check=False)
        if done.returncode != 0:
            raise UnavailableError(
                f"the emulated Python does not run: {done.stderr.strip()[-300:]}",
                at=self.folder,
                do=f"prepare it anew: kdpipe devices add {self.name} --replace",
            )
        caps, caps2 = (int(word) for word in done.stdout.split())
        flags = [name for bit, name in enumerate(_HWCAP.split()) if caps >> bit & 1] + [name for bit, name in enumerate(_HWCAP2.split()) if caps2 >> bit & 1]
        prefix = self._prefix(" ".join(flags))
        return [emulator, "-cpu", self.settings.cpu, "-L", str(prefix), str(prefix / PYTHON)]

    def _prefix(self, flags: str) -> Path:
        """A folder in which absolute paths are looked up first: the userland by links, and a cpuinfo of this CPU."""
        prefix = cache_folder("prefixes") / f"{self.folder.name}-{self.settings.cpu}"
        prefix.mkdir(parents=True, exist_ok=True)
        for entry in self.folder.iterdir() if self.cpu.architecture == "aarch64" else ():
            link = prefix / entry.name
            if entry.is_dir() and not (link.is_symlink() and link.readlink() == entry):
                link.unlink(missing_ok=True)
                link.symlink_to(entry)
        for name, text in {"proc/cpuinfo": self._cpuinfo(flags), "sys/devices/system/cpu/possible": "0\n", "sys/devices/system/cpu/present": "0\n"}.items():
            place = prefix / name
            if not place.is_file() or place.read_text() != text:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, text)
        return prefix

    def _cpuinfo(self, flags: str) -> str:
        """The kernel's text for one core, in the form of the architecture."""
        name = f"model name\t: {self.cpu.title}, emulated"
        if self.cpu.architecture == "x86_64":
            return f"processor\t: 0\nvendor_id\t: GenuineIntel\n{name}\nflags\t\t: {flags}\n\n"
        identity = f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.cpu.part}\nCPU revision\t: 0\n"
        return f"processor\t: 0\n{name}\nBogoMIPS\t: 100.00\nFeatures\t: {flags}\n{identity}\n"

    @property
    def _environment(self) -> dict[str, str]:
        """This process's, without what steers the host's own numpy; with the userland's packages."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        if self.cpu.architecture == "aarch64":
            kept = {name: value for name, value in kept.items() if not name.startswith(("PYTHON", "LD_"))} | {"PYTHONPATH": str(self.folder / SITE)}
        return kept


def require_emulator(architecture: str, *, at: str) -> str:
    """The path of qemu-user for the architecture; UnavailableError where it is not installed."""
    for name in (f"qemu-{architecture}-static", f"qemu-{architecture}"):
        found = shutil.which(name)
        if found:
            return found
    raise UnavailableError(f"qemu-{architecture} is not installed on this machine", at=at, do="apt-get install qemu-user-static")


plugin = Emulated
