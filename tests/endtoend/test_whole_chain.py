"""The main job by the command line on real stages: it ends as it should, whatever is done to it on the way, and its files are what they are said to be.

One file, so that one worker builds the project that all compare with.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.foundation.files import sha256_of
from kdpipe.targets.instruction_sets import probe

pytestmark = pytest.mark.slow

TIMED = {"bench.json", "report.html", "manifest.json"}
STEPS = ("teacher", "score-teacher", "distill", "prune", "qat@cpu", "export@cpu", "score-export@cpu", "bench@cpu")


def lasting(folder: Path) -> dict[str, str]:
    """The digests of all weights in the store and of all files in the bundles but those that hold times."""
    bundles = [path for path in (folder / "dist").rglob("*") if path.is_file() and path.name not in TIMED]
    weights = list((folder / ".kdpipe" / "store").rglob("*.safetensors"))
    return {str(path.relative_to(folder)): sha256_of(path) for path in bundles + weights}


def killed_in(step: str, process: "subprocess.Popen[str]", seconds: float) -> None:
    """Kill the build with SIGKILL that many seconds after it says that it begins `step`."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{step}: first build"):
            break
    else:
        pytest.fail(f"{step} was never begun")
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_a_build_killed_in_every_stage_ends_with_the_same_weights_and_bundles(project, undisturbed):
    for position, step in enumerate(STEPS):
        killed_in(step, project.start("build"), seconds=0.15 * (position % 4))
    result = project.run("build")
    assert result.returncode == 0, result.stderr[-3000:]
    expected = lasting(undisturbed.folder)
    assert len(expected) > 20
    assert lasting(project.folder) == expected


def test_an_interrupt_in_the_middle_keeps_what_is_finished_and_says_how_to_go_on(project, undisturbed):
    process = project.start("build")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("distill: first build"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "finished steps are kept (teacher, score-teacher)" in rest
    assert "the same command goes on from here" in rest
    assert "Traceback" not in rest
    assert project.run("build", "--until", "distill").returncode == 0
    weights = {path.name: sha256_of(path / "weights.safetensors") for path in (project.folder / ".kdpipe/store").iterdir() if (path / "network.json").exists()}
    assert len(weights) == 2
    assert all(sha256_of(undisturbed.folder / ".kdpipe/store" / name / "weights.safetensors") == digest for name, digest in weights.items())


def test_two_builds_at_once_both_end_well_and_do_the_work_once(project):
    builds = [project.start("build", "--until", "qat", "--target", "cpu") for _ in range(2)]
    told = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], told
    for step in ("teacher", "distill", "prune", "qat@cpu"):
        assert sum(line.startswith(f"{step}: built in") for text in told for line in text.splitlines()) == 1, "\n=====\n".join(told)


def test_the_bundle_runs_and_verifies_where_it_was_copied_to(undisturbed, tmp_path, kdpipe):
    bundle = Path(shutil.copytree(undisturbed.folder / "dist/small/arm", tmp_path / "elsewhere"))
    verified = kdpipe("verify", str(bundle))
    assert verified.returncode == 0, verified.stderr
    contract = json.loads((bundle / "contract.json").read_text())
    assert str(undisturbed.folder) not in "".join(path.read_text(errors="ignore") for path in bundle.iterdir())
    assert json.dumps(contract).count('"0"') >= 1


def test_a_second_target_costs_its_own_tail_alone(project):
    assert project.run("build", "--target", "cpu", "--until", "prune").returncode == 0
    rows = json.loads(project.run("plan", "--target", "cpu", "--target", "arm", "--json").stdout)["steps"]
    assert {row["step"] for row in rows if row["state"] == "keep"} == {"teacher", "score-teacher", "distill", "score-distill", "prune", "score-prune"}


def test_accelerators_are_built_and_checked_offline_and_never_timed(undisturbed):
    result = undisturbed.run("build", "--target", "gpu", "--target", "npu", "--json")
    assert result.returncode == 0, result.stderr[-3000:]
    dist = undisturbed.folder / "dist" / "small"
    assert {"model.onnx", "model.xml", "model.bin"} <= {path.name for path in (dist / "npu").iterdir()}
    for target in ("gpu", "npu"):
        bench = json.loads((dist / target / "bench.json").read_text())
        assert bench["latencies"] == []
        assert bench["not_measured"].startswith("not measured: no device")


USER_NETWORKS = """\
import torch
from torch import nn
from torch.nn import functional as F


class Functional(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = torch.add(x, F.relu(self.second(x)))
        return self.head(x.flatten(1))


class Branching(Functional):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(-x)


class Unexportable(Functional):
    def forward(self, x):
        return super().forward(torch.special.bessel_j0(x))


class WrongShape(Functional):
    def forward(self, x):
        return super().forward(x)[:, :7]
"""


def with_user_network(project, name):
    (project.folder / "my_networks.py").write_text(USER_NETWORKS)
    project.replace('student = "resnet-8"', f'student = "my_networks:{name}"')
    return project.replace("[teacher]", "[teacher]\nbatch_size = 64")


def test_a_users_network_of_functional_calls_goes_through_the_whole_chain(project):
    result = with_user_network(project, "Functional").run("build", "--target", "cpu", "--json")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = json.loads(result.stdout)["rows"]
    assert {row["model"] for row in rows} == {"teacher", "student", "pruned", "twin", "int8", "ptq"}


def require_told(result, message):
    assert result.returncode == 2, result.stderr[-3000:]
    assert message in result.stderr
    assert "  at:" in result.stderr
    assert "  do:" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Absent", "module 'my_networks' has no 'Absent'"),
        ("WrongShape", "returns (2, 7), (2, 10) is needed: (batch, classes)"),
        ("Branching", "cannot be traced"),
    ],
)
def test_a_users_network_that_cannot_be_used_is_told_before_the_teacher_is_trained(project, name, message):
    result = with_user_network(project, name).run("build", "--target", "cpu")
    require_told(result, message)
    assert not (project.folder / ".kdpipe" / "store").exists()


def test_a_users_network_that_cannot_be_exported_is_told_and_what_was_finished_stays(project):
    with_user_network(project, "Unexportable").replace("[prune]", "[prune]\nenabled = false")
    require_told(project.run("build", "--target", "cpu"), "bessel_j0")
    plan = json.loads(project.run("plan", "--target", "cpu", "--json").stdout)["steps"]
    assert next(row for row in plan if row["step"] == "teacher")["state"] == "keep"


def test_a_loss_that_turns_nan_stops_and_says_where(project):
    result = project.run("build", "--set", "distill.learning_rate=1e30")
    assert result.returncode == 2
    assert "epoch 1" in result.stderr
    assert "learning_rate" in result.stderr


@pytest.fixture
def told(kdpipe):
    def evaluated(*arguments):
        result = kdpipe("eval", *map(str, arguments), "--json")
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    return evaluated


def test_the_bundles_own_figures_come_again_and_without_its_store_it_is_judged_as_any_file(undisturbed, tmp_path, told):
    bundle = undisturbed.folder / "dist" / "small" / "cpu"
    cards = json.loads((bundle / "scorecard.json").read_text())["scorecards"]
    built = {card["runtime"]: card for card in cards if card["model"] == "int8"}
    again = told(bundle, "--decision-queries", 0)
    assert again["kind"] == "bundle"
    assert again["gradients"] == "replayed from the build's own networks in the project's store: twin, pruned, student, teacher"
    assert {card["runtime"]: card for card in again["scorecards"]} == built
    shutil.copytree(bundle, tmp_path / "bundle")
    alone = told(tmp_path / "bundle", "--decision-queries", 60, "--runtime", "onnxruntime")
    assert alone["gradients"].startswith("a differentiable twin of the file's graph, straight through rounding")
    (card,) = alone["scorecards"]
    assert card["clean"] == built[card["runtime"]]["clean"]
    assert [attack["crafted_on"][0] for attack in card["attacks"]] == ["twin", "twin", "file", "file"]


VARIANTS = '[targets.cpu]\nvariants = ["avx2", "vnni"]\n[targets.cpu.budgets]\nclean_drop = 90\n'


def test_variants_are_built_beside_what_is_there_and_ship_in_one_bundle(undisturbed, tmp_path, kdpipe):
    shutil.copytree(undisturbed.folder, tmp_path / "project")
    project = replace(undisturbed, folder=tmp_path / "project").replace("[targets.cpu]\n", VARIANTS)
    exact = bool({"vnni", "aarch64"} & probe())
    result = project.run("build", "--target", "cpu", "--json")
    assert result.returncode == (0 if exact else 4), result.stderr[-3000:]
    told = json.loads(result.stdout)
    states = {step["step"]: step["state"] for step in told["steps"]}
    assert {name for name, state in states.items() if state == "built"} == {name for name in states if name.endswith("@cpu-vnni")}
    assert {verdict["target"]: verdict["state"] for verdict in told["budgets"]} == {"cpu-avx2": "met", "cpu-vnni": "met" if exact else "not checkable"}
    assert {row["target"] for row in told["rows"]} == {None, "cpu-avx2", "cpu-vnni"}
    assert [each["target"] for each in told["expectations"]] == ["cpu-avx2", "cpu-vnni"]
    bundle = project.folder / "dist" / "small" / "cpu"
    assert told["bundles"] == {"cpu": str(bundle)}

    verified = json.loads(kdpipe("verify", str(bundle), "--json").stdout)
    assert verified["variants"] == ["vnni", "avx2"]
    which = json.loads(subprocess.run([sys.executable, str(bundle / "predict.py"), "--which", "--json"], capture_output=True, check=True).stdout)
    assert which["variant"] == ("vnni" if {"vnni", "avx2"} <= probe() else "avx2")
    judged = project.run("eval", str(bundle), "--attacks", "", "--corruptions", "", "--json")
    assert json.loads(judged.stdout)["subject"] == str(bundle / which["variant"])
    pair = [str(bundle / variant) for variant in ("avx2", "vnni")]
    compared = kdpipe("compare", *pair, "--margin", "100")
    assert compared.returncode == 0, compared.stderr
