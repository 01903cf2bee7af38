"""What the CPU of this machine can do, as named instruction sets: probed from the operating system, never assumed.

The names are those that profiles use. `x86-64` and `aarch64` stand for the architecture; `vnni` stands for any of the
x86 sets with an int8 dot product that accumulates in 32 bits (without it, two u8 × s8 products are added in 16 bits and
may saturate).
"""

import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
SYSCTL = "/usr/sbin/sysctl"

# kernel's flag (x86 `flags`, ARM `Features`) -> our name
_X86_FLAGS = {
    "sse4_1": "sse4.1",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "avx_vnni_int8": "avx-vnni-int8",
    "avx512_bf16": "avx512-bf16",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}
_ARM_FLAGS = {"asimd": "asimd", "asimdhp": "asimdhp", "asimddp": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2"}
_MAC_KEYS = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512",
    "hw.optional.avx512vnni": "avx512-vnni",
}
_VNNI = {"avx512-vnni", "avx-vnni", "avx-vnni-int8", "amx-int8"}
ARCHITECTURES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}
NAMES = frozenset({*_X86_FLAGS.values(), *_ARM_FLAGS.values(), *ARCHITECTURES.values(), "vnni"})


def probe() -> frozenset[str]:
    """The instruction sets of this machine, all of `NAMES` that it has.

    Linux: /proc/cpuinfo (flags that all cores share). macOS: sysctl. Elsewhere, or where the system does not tell:
    the architecture alone, so that nothing is promised that was not seen.
    """
    found = {ARCHITECTURES[platform.machine().lower()]} if platform.machine().lower() in ARCHITECTURES else set()
    if platform.system() == "Linux" and CPUINFO.is_file():
        found |= named(flags_of(CPUINFO.read_text(errors="replace")))
    elif platform.system() == "Darwin":
        found |= {name for key, name in _MAC_KEYS.items() if _sysctl(key) == "1"}
    return _with_vnni(found)


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The flags that every processor in the text of /proc/cpuinfo has (`flags` on x86, `Features` on ARM)."""
    lines = re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", cpuinfo, flags=re.MULTILINE)
    shared = [set(line.split()) for line in lines]
    return frozenset(set.intersection(*shared)) if shared else frozenset()


def named(flags: Iterable[str]) -> frozenset[str]:
    """Our names for the kernel's flags; flags without a name here are left out."""
    names = {**_X86_FLAGS, **_ARM_FLAGS}
    return _with_vnni({names[flag] for flag in flags if flag in names})


def flag_table() -> dict[str, list[str]]:
    """What each flag of a system means, for a program that has nothing of kdpipe: the kernel's flags, and macOS's keys, to our names."""
    names = {**_X86_FLAGS, **_ARM_FLAGS, **_MAC_KEYS}
    return {flag: sorted(_with_vnni({name})) for flag, name in names.items()}


def _with_vnni(sets: set[str]) -> frozenset[str]:
    return frozenset(sets | {"vnni"}) if sets & _VNNI else frozenset(sets)


def _sysctl(key: str) -> str | None:
    try:
        answer = subprocess.run([SYSCTL, "-n", key], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no answer is "not known to have it"
    return answer.stdout.strip() if answer.returncode == 0 else None
