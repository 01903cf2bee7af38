"""The command line on real stages: one small project is built once, and each test goes on from a copy of it."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline import build, building, plan
from kdpipe.pipeline.building import command_line, rewritten
from kdpipe.pipeline.expectations import expectations
from kdpipe.pipeline.progress import PlainProgress
from kdpipe.tasks.data import digits

COMMANDS_PAGE = Path(__file__).parents[2] / "docs" / "commands.md"

KDPIPE_TOML = """\
[project]
name = "small"
threads = 1
[task]
data = "data.npz"
augment = []
[teacher]
network = "cnn-small"
objective = "plain"
epochs = 1
[distill]
student = "cnn-small"
objective = "kd"
epochs = 1
[qat]
epochs = 0
calibration_samples = 64
[evaluate]
attacks = ["fgsm"]
epsilon = 0.1
attack_samples = 20
corruptions = []
epsilon_curve = []
square_queries = 0
masking = false
[bench]
seconds = 0.05
batches = [1]
threads = [1]
warmup_seconds = 0.05
[targets.cpu]
[targets.arm]
[budgets]
size_kb = 5000
"""


def _age(path: Path) -> None:
    before = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(before, before))


Kdpipe = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of 400 of the digits."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    train = digits.load(None).train
    images = (train.samples.pixels(np.arange(400))[:, 0] * 255).astype(np.uint8)
    np.savez(path, images=images, labels=train.labels[:400])
    _age(path)
    return path


@pytest.fixture
def fresh(data: Path, tmp_path: Path) -> Path:
    """The small project, not built."""
    folder = tmp_path / "small"
    folder.mkdir()
    shutil.copy2(data, folder / "data.npz")
    (folder / "kdpipe.toml").write_text(KDPIPE_TOML)
    return folder


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """The small project built for arm, and what the command told."""
    folder = tmp_path_factory.mktemp("built") / "small"
    folder.mkdir()
    shutil.copy2(data, folder / "data.npz")
    (folder / "kdpipe.toml").write_text(KDPIPE_TOML)
    command = [sys.executable, "-m", "kdpipe.pipeline", "build", "--target", "arm"]  # a new process: what it imports for a build, it imports in time
    return folder, subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
def test_a_build_ends_with_the_table_a_bundle_and_the_report(built: tuple[Path, "subprocess.CompletedProcess[str]"], kdpipe: Kdpipe) -> None:
    folder, told = built
    assert told.returncode == 0, told.stderr
    bundle = folder / "dist" / "small" / "arm"
    assert f"bundle arm: {bundle}" in told.stdout
    assert f"report: {folder / 'dist' / 'small' / 'report.html'}" in told.stdout
    assert re.search(r"teacher +\d", told.stdout)
    assert "target arm" in told.stdout
    assert "budget size_kb of arm: met" in told.stdout
    assert "teacher: first build" in told.stderr
    assert {"model.onnx", "contract.json", "scorecard.json", "bench.json", "manifest.json", "report.html", "predict.py"} <= {
        path.name for path in bundle.iterdir()
    }
    verified = kdpipe("verify", str(bundle), folder=folder)
    assert verified.returncode == 0, verified.stderr
    assert re.search(r"small for arm: \d+ files agree with the manifest; the model answers in onnxruntime", verified.stdout)


WITHOUT_TORCH = """
import sys
from kdpipe.pipeline.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_build_with_nothing_to_do_repeats_its_end_without_torch_or_the_data(built: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    folder, first = built
    told = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "build", "--target", "arm"], capture_output=True, text=True, check=False, cwd=folder)
    assert told.returncode == 0, told.stderr
    assert told.stdout == first.stdout
    assert re.fullmatch(r"nothing to do: \d+ steps kept\nFalse\n", told.stderr)


@pytest.mark.slow
def test_one_changed_pixel_is_noticed_and_everything_that_follows_from_it_is_planned(
    built: tuple[Path, "subprocess.CompletedProcess[str]"], tmp_path: Path, kdpipe: Kdpipe
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(built[0], folder)
    assert _states(kdpipe, folder, "arm") == {"keep"}
    with np.load(folder / "data.npz") as file:
        images, labels = file["images"], file["labels"]
    size = (folder / "data.npz").stat().st_size
    images[0, 0, 0] ^= 1
    np.savez(folder / "data.npz", images=images, labels=labels)
    assert (folder / "data.npz").stat().st_size == size
    told = kdpipe("build", "--target", "arm", "--until", "teacher", folder=folder)
    assert told.returncode == 0, told.stderr
    assert "teacher: data changed" in told.stderr
    assert _states(kdpipe, folder, "arm") == {"keep", "run"}


def _states(kdpipe: Kdpipe, folder: Path, target: str) -> set[str]:
    told = kdpipe("plan", "--target", target, "--json", folder=folder)
    assert told.returncode == 0, told.stderr
    return {step["state"] for step in json.loads(told.stdout)["steps"]}


@pytest.mark.slow
def test_budgets_decide_the_exit_code_after_everything_is_written_and_again_from_the_memo(
    built: tuple[Path, "subprocess.CompletedProcess[str]"], kdpipe: Kdpipe
) -> None:
    folder, _ = built
    for setting, code, state in (("budgets.size_kb=0.001", 3, "missed"), ("budgets.p90_ms=5", 4, "not checkable")):
        for _ in range(2):
            told = kdpipe("build", "--target", "arm", "--set", setting, folder=folder)
            assert told.returncode == code, told.stderr
            assert f": {state}" in told.stdout
            assert "bundle arm" in told.stdout
        assert told.stderr.startswith("nothing to do")


@pytest.mark.slow
def test_json_holds_steps_rows_budgets_and_places(built: tuple[Path, "subprocess.CompletedProcess[str]"], kdpipe: Kdpipe) -> None:
    folder, _ = built
    told = kdpipe("build", "--target", "arm", "--json", folder=folder)
    assert told.stderr == ""
    printed = json.loads(told.stdout)
    assert [step["state"] for step in printed["steps"]] == ["kept"] * len(printed["steps"])
    assert printed["budgets"][0]["state"] == "met"
    assert Path(printed["bundles"]["arm"], "model.onnx").is_file()
    assert {row["model"] for row in printed["rows"]} >= {"teacher", "student", "int8"}
    assert printed["exit_code"] == 0


@pytest.mark.slow
def test_a_lost_bundle_is_written_again_and_the_report_command_writes_both(built: tuple[Path, "subprocess.CompletedProcess[str]"], kdpipe: Kdpipe) -> None:
    folder, _ = built
    model = folder / "dist" / "small" / "arm" / "model.onnx"
    before = model.read_bytes()
    shutil.rmtree(folder / "dist")
    told = kdpipe("report", "--target", "arm", folder=folder)
    assert told.returncode == 0, told.stderr
    assert told.stdout == f"{folder / 'dist' / 'small' / 'report.html'}\n"
    assert model.read_bytes() == before
    shutil.rmtree(folder / "dist")
    assert kdpipe("build", "--target", "arm", folder=folder).returncode == 0
    assert model.read_bytes() == before


@pytest.mark.slow
def test_a_flipped_byte_in_the_weights_is_set_aside_and_rebuilt_to_the_same_bits(
    built: tuple[Path, "subprocess.CompletedProcess[str]"], tmp_path: Path, kdpipe: Kdpipe
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(built[0], folder)
    teacher = next(step for step in json.loads(kdpipe("plan", "--target", "arm", "--json", folder=folder).stdout)["steps"] if step["step"] == "teacher")
    weights = folder / ".kdpipe" / "store" / teacher["fingerprint"] / "weights.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    told = kdpipe("build", "--target", "arm", folder=folder)
    assert told.returncode == 0, told.stderr
    assert "teacher: damaged: weights.safetensors; set aside to .kdpipe/damaged/" in told.stderr
    assert weights.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_build_exits_with_130_and_says_how_to_go_on(fresh: Path, number: signal.Signals, kdpipe: Kdpipe, warm_python: list[str]) -> None:
    command = [*warm_python, "-m", "kdpipe.pipeline", "build", "--until", "teacher", "--set", "teacher.epochs=500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=fresh) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and not line.startswith("teacher 2/500: "):  # an epoch is done, and its checkpoint written
            pass
        process.send_signal(number)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped in teacher; finished steps are kept: the same command goes on from here" in rest
    assert "Traceback" not in rest
    assert "goes on where it was interrupted" in kdpipe("plan", "--until", "teacher", "--set", "teacher.epochs=500", folder=fresh).stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_with_4_and_an_advice(fresh: Path, small_disk: Path, kdpipe: Kdpipe) -> None:
    for path in fresh.iterdir():
        shutil.copy2(path, small_disk)
    told = kdpipe("build", "--target", "arm", "--set", 'teacher.network="resnet-20"', folder=small_disk)
    assert told.returncode == 4, told.stderr
    assert "No space left on device" in told.stderr or "the disk is full" in told.stderr
    assert "finished" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_python_interface_plans_and_refuses_as_the_command_does(fresh: Path) -> None:
    made = plan(fresh, until="teacher", overrides=["teacher.epochs=2"])
    assert [planned.step.name for planned in made.steps] == ["teacher", "score-teacher"]
    with pytest.raises(ConfigError, match="unknown target 'cqu'"):
        build(fresh, targets=["cqu"])
    assert not (fresh / ".kdpipe" / "store").exists()


def test_a_device_can_be_named_for_one_target_and_for_no_more(fresh: Path) -> None:
    with (fresh / "kdpipe.toml").open("a") as file:
        file.write('[devices.here]\nkind = "local"\n')
    assert {name: target.device for name, target in plan(fresh, targets=["arm"], device="here", until="teacher").config.targets.items()} == {"arm": "here"}
    for do in (plan, build):
        with pytest.raises(ConfigError) as raised:
            do(fresh, device="here")
        assert str(raised.value) == "error: one device for 2 targets: cpu, arm\n  at:  --device here\n  do:  name the one that it measures, e.g. --target cpu"
    with pytest.raises(ConfigError) as raised:
        build(fresh, targets=["arm"], device="her")
    assert str(raised.value) == "error: unknown device 'her'\n  at:  --set targets.arm.device=\"her\"\n  do:  did you mean 'here'?"


def test_a_report_of_a_build_that_is_not_finished_is_refused(fresh: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        rewritten(fresh)
    (problem,) = caught.value.problems
    assert problem.message == "the build is not finished: 14 steps are missing, first teacher"
    assert problem.at == str(fresh)
    assert problem.do == "run kdpipe build"


SLEEPS = """
import os, sys
from kdpipe.pipeline import plan
from kdpipe.foundation.errors import ConfigError
assert "torch" not in sys.modules
plan(sys.argv[1], until="teacher")
assert "torch" in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("own", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")], ids=["by default", "the user's own"])
def test_torchs_threads_sleep_while_they_wait(fresh: Path, own: str | None, policy: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | ({"OMP_WAIT_POLICY": own} if own else {})
    told = subprocess.run([sys.executable, "-c", SLEEPS, str(fresh)], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout == f"{policy}\n"


@pytest.mark.parametrize(("threads", "load", "warned"), [(2, 99.0, True), (1, 99.0, False), (2, 0.1, False)], ids=["busy", "one thread", "idle"])
def test_a_busy_machine_is_told_where_threads_would_wait(threads: int, load: float, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    building._say_if_busy(threads, PlainProgress(stream))
    assert ("this machine is busy (load 99.0 on " in stream.getvalue()) == warned


@pytest.mark.slow
def test_the_python_of_the_commands_page_runs(built: tuple[Path, "subprocess.CompletedProcess[str]"], tmp_path: Path, warm_python: list[str]) -> None:
    shutil.copytree(built[0], tmp_path / "my-project")
    (block,) = re.findall(r"```python\n(.*?)```", COMMANDS_PAGE.read_text(), re.DOTALL)
    told = subprocess.run([*warm_python, "-c", block], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[0] == "teacher keep ()"
    assert told.stdout.splitlines()[-1].startswith("0 ")


def test_the_command_in_a_bundle_makes_it_again_from_the_projects_folder() -> None:
    assert command_line("build", ["cpu", "arm"], None, ["project.name=my net"]) == "kdpipe build --target cpu --target arm --set 'project.name=my net'"


def test_a_device_for_one_variant_is_that_of_its_section_and_what_is_expected_is_told(fresh: Path) -> None:
    with (fresh / "kdpipe.toml").open("a") as file:
        file.write('[devices.here]\nkind = "local"\n')
    text = (fresh / "kdpipe.toml").read_text()
    (fresh / "kdpipe.toml").write_text(text.replace("[targets.cpu]\n", '[targets.cpu]\nvariants = ["avx2", "vnni"]\n'))
    made = plan(fresh, targets=["cpu-vnni"], device="here", until="teacher")
    assert {name: target.device for name, target in made.config.targets.items()} == {"cpu-vnni": "here"}
    (found,) = expectations(made)
    assert (found.target, found.outlook) == ("cpu-vnni", "not faster")
    assert any(reason.startswith("the network is small: ") for reason in found.reasons)
    assert list(plan(fresh, targets=["cpu"], device="here", until="teacher").config.targets) == ["cpu-avx2", "cpu-vnni"]
