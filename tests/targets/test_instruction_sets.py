import platform

import numpy as np
import pytest

from kdpipe.targets import instruction_sets
from kdpipe.targets.instruction_sets import NAMES, flags_of, named, probe

HASWELL = "processor\t: 0\nflags\t\t: fpu sse4_1 avx fma avx2\n\nprocessor\t: 1\nflags\t\t: fpu sse4_1 avx fma avx2\n"
A72 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 cpuid\nCPU part\t: 0xd08\n"
BIG_LITTLE = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd asimddp i8mm\n"


def test_the_probe_agrees_with_numpy_about_this_cpu():
    found = probe()
    features = np._core._multiarray_umath.__cpu_features__  # numpy asks the CPU itself, not the kernel
    for theirs, ours in {"AVX2": "avx2", "FMA3": "fma", "AVX512F": "avx512", "ASIMD": "asimd", "ASIMDDP": "asimddp"}.items():
        assert (ours in found) is bool(features.get(theirs)), ours


def test_the_probe_knows_the_architecture_and_only_known_names():
    assert probe() & {"x86-64", "aarch64"}
    assert probe() <= NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [(HASWELL, {"sse4.1", "avx", "fma", "avx2"}), (A72, {"asimd"}), (BIG_LITTLE, {"asimd", "asimddp"}), ("", set())],
    ids=["haswell", "cortex-a72", "only what all cores have", "an empty file"],
)
def test_flags_are_read_from_the_kernel_s_text(text, expected):
    assert named(flags_of(text)) == expected


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"])
def test_every_int8_dot_product_of_x86_counts_as_vnni(flag):
    assert "vnni" in named({flag})
    assert "vnni" not in named({"avx2", "avx512f"})


def test_a_system_that_does_not_tell_is_promised_its_architecture_alone(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    assert probe() <= {"x86-64", "aarch64"}


def test_a_mac_is_asked_by_sysctl_and_silence_is_no(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    answers = {"hw.optional.AdvSIMD": "1", "hw.optional.arm.FEAT_DotProd": "1", "hw.optional.arm.FEAT_I8MM": "0"}
    monkeypatch.setattr(instruction_sets, "_sysctl", answers.get)
    assert probe() == {"aarch64", "asimd", "asimddp"}


def test_a_missing_sysctl_is_silence(monkeypatch):
    monkeypatch.setattr(instruction_sets, "SYSCTL", "/nowhere/sysctl")
    assert instruction_sets._sysctl("hw.optional.AdvSIMD") is None
