import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline import predict
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.variant_bundle import write_variants
from kdpipe.pipeline.variants import expanded, for_this_machine, loader_table, members_of
from kdpipe.pipeline.verify import verify_bundle
from kdpipe.targets.instruction_sets import NAMES, named, probe
from kdpipe.targets.profile import Profile, load_profile

MEMBERS = {"avx2": "cpu-avx2", "vnni": "cpu-vnni"}
PROFILES = {variant: load_profile("cpu", at="test", variant=variant) for variant in MEMBERS}
TABLE = loader_table("cpu", PROFILES)

SLOWER = "it runs in ONNX Runtime's exact mode, which is slower"

# The kernel's flags of real CPUs, those that matter.
AVX2 = "sse4_1 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512dq avx512bw avx512vl"
CPUS = {
    "Haswell": AVX2,
    "Zen 2": AVX2,
    "Skylake-SP, AVX-512 without VNNI": AVX512,
    "Cascade Lake": f"{AVX512} avx512_vnni",
    "Alder Lake": f"{AVX2} avx_vnni",
    "Sierra Forest": f"{AVX2} avx_vnni avx_vnni_int8",
    "Sapphire Rapids": f"{AVX512} avx512_vnni avx_vnni amx_tile amx_int8 amx_bf16",
    "a guest that is shown AMX alone": f"{AVX512} amx_int8",
    "Nehalem, before AVX2": "sse4_1",
}


def _sets(flags: str, architecture: str = "x86-64") -> frozenset[str]:
    return named(flags.split()) | {architecture}


_WRITTEN: list[Path] = []


@pytest.fixture
def bundle(build_folder: Any, tmp_path: Path) -> Path:
    """A bundle of both variants, each test's own: written once, copied ever after."""
    destination = tmp_path / "dist" / "digits" / "cpu"
    if _WRITTEN:
        return shutil.copytree(_WRITTEN[0], destination)
    written = write_variants(_build(build_folder), "cpu", MEMBERS, (), destination)
    _WRITTEN.append(shutil.copytree(written, tmp_path / "kept"))
    return written


def _build(build_folder: Any) -> BuildResult:
    build_folder.targets = build_folder.measured = tuple(MEMBERS.values())
    build: BuildResult = build_folder.write()
    targets = {MEMBERS[variant]: {"profile": profile.model_dump(mode="json"), "bundle": "cpu"} for variant, profile in PROFILES.items()}
    return replace(build, config={**build.config, "targets": targets})


def _run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("cpu", "variant"),
    [
        ("Haswell", "avx2"),
        ("Zen 2", "avx2"),
        ("Skylake-SP, AVX-512 without VNNI", "avx2"),
        ("Nehalem, before AVX2", "avx2"),
        ("Cascade Lake", "vnni"),
        ("Alder Lake", "vnni"),
        ("Sierra Forest", "vnni"),
        ("Sapphire Rapids", "vnni"),
        ("a guest that is shown AMX alone", "vnni"),
    ],
    ids=str,
)
def test_the_loader_takes_the_variant_that_the_cpu_computes_exactly_and_fast(cpu: str, variant: str) -> None:
    choice = predict.choose(TABLE, _sets(CPUS[cpu]), None)
    assert choice.name == variant
    assert choice.why == ("this CPU has avx2, vnni" if variant == "vnni" else "this CPU has no avx2, vnni" if cpu.startswith("Neh") else "this CPU has no vnni")


def test_a_machine_of_another_architecture_takes_the_one_that_is_right_everywhere() -> None:
    choice = predict.choose(TABLE, _sets("asimd asimddp i8mm", "aarch64"), None)
    assert (choice.name, choice.why) == ("avx2", "this is no x86-64 machine; this one is right on every CPU, if not the fastest there")


def test_where_the_cpu_cannot_be_probed_the_loader_does_not_guess() -> None:
    choice = predict.choose(TABLE, None, None)
    assert (choice.name, choice.why) == ("avx2", "what this CPU can do could not be found out; this one is right on every CPU")


@pytest.mark.parametrize(
    ("sets", "warning"),
    [
        (_sets(CPUS["Haswell"]), f"this CPU has no vnni or aarch64, and its sums would saturate in 16 bits: {SLOWER}"),
        (None, f"whether this CPU computes it exactly could not be found out: {SLOWER}"),
        (_sets(CPUS["Cascade Lake"]), None),
        (_sets("asimd", "aarch64"), None),
    ],
    ids=["saturates", "not known", "exact", "exact on ARM"],
)
def test_a_variant_that_is_asked_for_is_taken_with_a_warning_where_it_would_be_wrong(sets: frozenset[str] | None, warning: str | None) -> None:
    assert predict.choose(TABLE, sets, "vnni") == predict.Choice("vnni", "it was asked for", "vnni", warning)


def test_the_loader_s_probe_finds_what_kdpipe_s_own_finds() -> None:
    assert predict.probed(TABLE) == probe()


@pytest.mark.parametrize("flags", CPUS.values(), ids=CPUS)
def test_the_loader_s_table_of_flags_says_what_kdpipe_says(flags: str) -> None:
    told = {name for flag in flags.split() for name in TABLE["flags"].get(flag, ())}
    assert told == named(flags.split())
    assert told <= NAMES


@pytest.mark.parametrize(
    ("machine", "cpuinfo"), [("x86_64", None), ("x86_64", "model name : odd"), ("riscv64", "flags : avx2")], ids=["none", "no flags", "odd"]
)
def test_a_system_that_does_not_tell_is_not_probed(monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str | None) -> None:
    def read(path: Path, **options: str) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(predict.platform, "machine", lambda: machine)
    monkeypatch.setattr(predict.platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "read_text", read)
    assert predict.probed(TABLE) is None


def test_other_systems_than_linux_and_macos_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.platform, "system", lambda: "Windows")
    monkeypatch.setattr(predict.platform, "machine", lambda: "AMD64")
    assert predict.probed(TABLE) is None


def test_a_cpu_that_claims_more_than_its_arithmetic_holds_gets_the_safe_variant(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "probed", lambda table: _sets(CPUS["Cascade Lake"]))
    monkeypatch.setattr(predict, "saturates", lambda model, test: True)
    choice = predict.chosen_in(bundle, None)
    assert choice is not None
    assert choice.name == "avx2"
    assert choice.why == "this CPU says that it has what vnni needs, but int8 sums saturate in onnxruntime here; this one is right on every CPU"


@pytest.mark.slow
def test_an_emulated_cpu_that_is_shown_the_flags_of_another_gets_the_safe_variant(bundle: Path) -> None:
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None or not {"x86-64", "vnni"} <= probe():
        pytest.skip("qemu-x86_64 and a host with VNNI are needed: its /proc/cpuinfo shows through")
    command = [emulator, "-cpu", "Haswell", sys.executable, "-I", str(bundle / "predict.py"), "--which", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert told["variant"] == "avx2"
    assert told["why"].startswith("this CPU says that it has what vnni needs, but int8 sums saturate in onnxruntime here")


EXACT = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy, predict
model = open(sys.argv[2], "rb").read()
for exact in (False, True):
    session = predict.open_session(model, threads=1, exact=exact)
    print(session.run(None, {"x": numpy.ones((4, 64), numpy.float32)})[0].max())
"""


@pytest.mark.slow
def test_the_exact_mode_does_not_saturate_on_a_cpu_without_an_int8_dot_product(bundle: Path) -> None:
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None or "x86-64" not in probe():
        pytest.skip("qemu-x86_64 and an x86 Python are needed")
    command = [emulator, "-cpu", "Haswell", sys.executable, "-c", EXACT, str(bundle), str(bundle / "arithmetic.onnx")]
    saturated, exact = map(float, subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split())
    assert saturated < 0.6 * TABLE["arithmetic"]["answer"]
    assert exact == TABLE["arithmetic"]["answer"]


def test_the_bundle_holds_a_whole_bundle_for_each_variant_and_its_loader(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {"avx2", "vnni", "predict.py", "variants.json", "arithmetic.onnx", "report.html", "manifest.json"}
    assert {member.variant: member.folder for member in members_of(bundle)} == {"vnni": bundle / "vnni", "avx2": bundle / "avx2"}
    for variant, target in MEMBERS.items():
        manifest = json.loads((bundle / variant / "manifest.json").read_text())
        assert manifest["target"] == target
        assert verify_bundle(bundle / variant).ran
    whole = json.loads((bundle / "manifest.json").read_text())
    assert (whole["target"], whole["variants"]) == ("cpu", MEMBERS)
    files = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file() and path != bundle / "manifest.json"]
    assert {name: file["sha256"] for name, file in whole["files"].items()} == {name: sha256_of(bundle / name) for name in files}
    report = (bundle / "report.html").read_text()
    assert "cpu-avx2" in report
    assert "cpu-vnni" in report


def test_predict_says_which_variant_it_took_and_can_be_told_another(bundle: Path, tmp_path: Path) -> None:
    batch = np.zeros((1, 1, 8, 8), np.float32)
    batch[0, 0, 3] = 1
    np.save(tmp_path / "batch.npy", batch)
    own = "vnni" if {"vnni", "aarch64"} & probe() and "avx2" in probe() else "avx2"
    result = _run(bundle, "--npy", tmp_path / "batch.npy", "--json")
    told = json.loads(result.stdout)
    assert (told["variant"], told["predictions"][0]["label"]) == (own, "3")
    assert result.stderr == f"variant {own}: {told['why']}\n"
    forced = _run(bundle, "--npy", tmp_path / "batch.npy", "--variant", "avx2")
    assert (forced.returncode, forced.stderr) == (0, "variant avx2: it was asked for\n")
    which = _run(bundle, "--which", "--json")
    assert json.loads(which.stdout) == {"variant": own, "why": told["why"], "warning": None}


def test_predict_refuses_a_variant_that_is_not_there(bundle: Path) -> None:
    result = _run(bundle, "--which", "--variant", "amx")
    assert (result.returncode, result.stderr) == (2, "error: there is no variant 'amx'\n  do:  name one of: vnni, avx2\n")
    alone = _run(bundle / "avx2", "--which")
    assert (alone.returncode, alone.stderr) == (2, "error: this bundle has no variants: it holds one model\n  do:  leave out --which\n")
    asked = _run(bundle / "avx2", "--which", "--variant", "vnni")
    assert (asked.returncode, asked.stderr) == (2, "error: there is no variant 'vnni': this bundle holds one model\n  do:  leave out --variant\n")


def test_predict_will_not_choose_by_a_table_that_is_not_the_manifest_s(bundle: Path) -> None:
    (bundle / "variants.json").write_text((bundle / "variants.json").read_text().replace('"vnni"', '"avx2"'))
    result = _run(bundle, "--which")
    assert result.returncode == 5
    assert result.stderr.startswith("error: variants.json is not the file that manifest.json describes")
    assert "copy the whole bundle again" in result.stderr


def test_every_variant_is_verified(bundle: Path) -> None:
    found = verify_bundle(bundle)
    assert (found.target, found.variants) == ("cpu", ("vnni", "avx2"))
    assert found.files == len(json.loads((bundle / "manifest.json").read_text())["files"])
    with (bundle / "vnni" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationError) as caught:
        verify_bundle(bundle)
    (problem,) = caught.value.problems
    assert problem.message == "the file is not the one that was built: its sha256 differs"
    assert problem.at == str(bundle / "vnni" / "model.onnx")
    assert "copy the bundle again" in (problem.do or "")


def test_commands_for_bundles_see_each_variant_and_the_one_for_this_machine(bundle: Path) -> None:
    assert expanded(bundle) == (bundle / "vnni", bundle / "avx2")
    assert expanded(bundle / "avx2") == (bundle / "avx2",)
    folder, told = for_this_machine(bundle)
    assert folder.parent == bundle
    assert (told or "").startswith(f"variant {folder.name}: ")
    assert for_this_machine(bundle / "avx2") == (bundle / "avx2", None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: {**table, "variants": []}, "it names no variant"),
        (lambda table: {**table, "variants": [{"name": "out", "folder": "../out"}]}, "there is no bundle of the variant 'out'"),
        (lambda table: {"format": 1}, "the variants cannot be read: 'variants'"),
    ],
    ids=["none", "outside", "no table"],
)
def test_a_damaged_table_of_variants_is_said(bundle: Path, damage: Any, message: str) -> None:
    table = json.loads((bundle / "variants.json").read_text())
    (bundle / "variants.json").write_text(json.dumps(damage(table)))
    with pytest.raises(VerificationError) as caught:
        members_of(bundle)
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == (message, str(bundle / "variants.json"))
    assert problem.do == "copy the bundle again, or run kdpipe build"


def test_a_profile_s_own_variants_are_taken_by_their_needs(tmp_path: Path) -> None:
    scheme = {"activation_signed": True, "activation_symmetric": True, "weight_bits": 8}
    arm = load_profile("arm", at="test").model_dump(mode="json")
    arm["variants"] = {"i8mm": {"title": "i8mm", "needs": ["i8mm"], "exact_on": ["aarch64"], "scheme": scheme}}
    profile = Profile.model_validate(arm)
    table = loader_table("arm", {name: profile.of_variant(name) for name in profile.variant_names})
    assert predict.choose(table, _sets("asimd asimddp i8mm", "aarch64"), None).name == "i8mm"
    assert predict.choose(table, _sets("asimd asimddp", "aarch64"), None).name == "default"
