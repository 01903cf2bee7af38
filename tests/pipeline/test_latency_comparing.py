"""`kdpipe compare --latency`: what is compared, what is refused, and the exit code; the gate's statistics have tests of their own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.pipeline import cli, latency_comparing
from kdpipe.pipeline.latency_comparing import EXIT_CODES, Asked, compare_latency
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.targets.devices.device import Device
from kdpipe.targets.latency_gate import GateResult, Pair
from kdpipe.targets.profile import load_profile

ModelMaker = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> ModelMaker:
    """A linear file with samples of these sides; None: a free one."""

    def make(name: str, *, sides: tuple[int | None, ...] = (64,), batch: int | str = "batch", width: int = 16, kind: int = TensorProto.FLOAT) -> Path:
        width_in = sides[-1] or 64
        constants = [numpy_helper.from_array(np.ones((width_in, width), np.float32), "w1"), numpy_helper.from_array(np.ones((width, 10), np.float32), "w2")]
        first = [helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT)]
        nodes = [*first, helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("MatMul", ["a", "w2"], ["logits"])]
        shape = [batch, *(f"side{number}" if side is None else side for number, side in enumerate(sides))]
        given = helper.make_tensor_value_info("input", kind, shape)
        result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape[:-1], 10])
        graph = helper.make_graph(nodes, "net", [given], [result], constants)
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
        return path

    return make


@pytest.fixture
def asked_of_gate(monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """The pairs that reached the gate, which answers `could not tell` without measuring."""
    pairs: list[Pair] = []

    def answer(device: Device, pair: Pair, **_: Any) -> GateResult:
        pairs.append(replace(pair, inputs=Path(str(np.load(pair.inputs).shape))))
        shown = {"verdict": "could not tell", "slower_than": 0.05, "ratio": 1.02, "low": 0.9, "high": 1.2, "confidence": 0.98, "process_ratios": [1.0, 1.04]}
        return GateResult.model_validate({**shown, "old_p50_ms": 1.0, "new_p50_ms": 1.02, "runs": 10, "seconds": 120.0, "others_share": 0.5})

    monkeypatch.setattr(latency_comparing, "gate", answer)
    return pairs


def compared(old: Path, new: Path, asked: Asked | None = None) -> latency_comparing.LatencyComparison:
    return compare_latency(old, new, asked or Asked(), SilentProgress())


def test_two_lone_files_get_the_same_drawn_samples_which_is_said(model: ModelMaker, asked_of_gate: list[Pair]) -> None:
    found = compared(model("old"), model("new"), Asked(threads=2, batch=4))
    (pair,) = asked_of_gate
    assert (pair.runtime, pair.threads, pair.batch, str(pair.inputs)) == ("onnxruntime", 2, 4, "(64, 64)")
    assert found.inputs == "64 samples drawn in [0, 1): name --data for real ones"
    assert found.runtime.startswith("onnxruntime ")
    assert found.exit_code == 4


def test_the_verdict_is_told_last_and_what_else_ran_before_it(model: ModelMaker, asked_of_gate: list[Pair]) -> None:
    told = compared(model("old"), model("new")).told
    assert told[-3] == "NEW takes 1.020 times as long [0.900, 1.200], 98 %: 10 runs in 2 fresh processes, 120 s"
    assert told[-2] == "other programs took 50 % of its cores"
    assert told[-1] == "could not tell in 120 s: the interval holds 1.05; a quieter machine or a longer --limit helps"


def test_exit_codes_tell_the_three_verdicts_apart() -> None:
    assert EXIT_CODES == {"no regression": 0, "regression": 3, "could not tell": 4}


def test_a_bundle_brings_its_runtime_its_batch_and_its_data(model: ModelMaker, asked_of_gate: list[Pair], tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", model("old", sides=(1, 8, 8), batch=1), "openvino")
    found = compared(bundle, model("new", sides=(1, 8, 8), batch=1))
    (pair,) = asked_of_gate
    assert (pair.runtime, pair.batch, str(pair.inputs)) == ("openvino", 1, "(64, 1, 8, 8)")
    assert found.inputs == "64 test samples"


def _bundle(folder: Path, file: Path, runtime: str, profile: str = "cpu") -> Path:
    folder.mkdir()
    file.rename(folder / "model.onnx")
    values = load_profile(profile, at="test").model_dump(mode="json")
    values["runtimes"] = [{"name": runtime, "versions": ""}]
    configuration = {"values": {"project": {"seed": 0}, "task": {"data": "digits"}, "evaluate": {}, "targets": {profile: {"profile": values}}}}
    manifest = {"project": "p", "target": profile, "data": "digest", "steps": {}, "machine": {"threads": 1}, "configuration": configuration}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "scorecard.json").write_text('{"scorecards": []}')
    return folder


@pytest.mark.parametrize(
    ("old", "new", "asked", "message", "do"),
    [
        ({}, {"sides": (32,)}, Asked(), "OLD takes samples of 64, NEW of 32", "compare files of the same input"),
        ({}, {"sides": (1, 64)}, Asked(), "OLD takes samples of 64, NEW of 1×64", "compare files of the same input"),
        (
            {"batch": 2},
            {"batch": 4},
            Asked(),
            "no common batch size: OLD 2, NEW 4, --batch any",
            "export both with the same batch size, or leave --batch out",
        ),
        ({"batch": 2}, {}, Asked(batch=8), "no common batch size: OLD 2, NEW any, --batch 8", "export both with the same batch size, or leave --batch out"),
        ({"kind": TensorProto.INT64}, {}, Asked(), "it has not one float32 input", "compare files with one float32 input (batch, …)"),
        ({"sides": (None, 64)}, {"sides": (None, 64)}, Asked(), "samples of ?×64 cannot be drawn", "name --data, whose samples have their size"),
        ({}, {}, Asked(data="digits"), "the file takes samples of 64, the data's are 1×8×8", "name the --data it is for"),
        ({}, {}, Asked(slower_than=0), "--slower-than 0 is not in [0.1, 1000]", "for instance --slower-than 5"),
        ({}, {}, Asked(limit_seconds=-1), "--limit -1 is not in [1, 86400]", "for instance --limit 120"),
        ({}, {}, Asked(threads=0), "--threads 0 is not in [1, 1024]", "for instance --threads 1"),
    ],
    ids=["side", "sides", "batches", "batch", "type", "free side", "other data", "threshold", "limit", "threads"],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    model: ModelMaker, asked_of_gate: list[Pair], old: dict[str, Any], new: dict[str, Any], asked: Asked, message: str, do: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(model("old", **old), model("new", **new), asked)
    (problem,) = caught.value.problems
    assert (problem.message, problem.do) == (message, do)
    assert problem.at
    assert asked_of_gate == []


def test_an_unknown_runtime_is_answered_with_those_there_are(model: ModelMaker) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(model("old"), model("new"), Asked(runtime="tflite"))
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == ("unknown runtime 'tflite'", "--runtime")
    assert "onnxruntime" in (problem.do or "")


def test_what_is_neither_a_bundle_nor_a_file_is_said(model: ModelMaker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compared(tmp_path, model("new"))
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == ("neither a bundle nor an .onnx file", str(tmp_path))
    assert problem.do == "name dist/PROJECT/TARGET of a finished build, or a file"


@pytest.mark.skipif(load_profile("arm", at="test").measurable_here(), reason="this host is the target's own")
def test_a_file_for_another_chip_is_not_timed_here(model: ModelMaker, asked_of_gate: list[Pair], tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "arm", model("old", sides=(1, 8, 8), batch=1), "onnxruntime", profile="arm")
    with pytest.raises(UnavailableError) as caught:
        compared(bundle, model("new", sides=(1, 8, 8), batch=1))
    (problem,) = caught.value.problems
    assert problem.message == "not measured: no device (the target is aarch64, device host is not)"
    assert (problem.at, problem.do) == (str(bundle / "model.onnx"), "compare on the device that it was built for: --device")
    assert asked_of_gate == []


@pytest.mark.parametrize(
    ("arguments", "message", "do"),
    [
        (["--threads", "2"], "--threads is for comparing speed", "add --latency, or leave it out"),
        (["--latency", "--margin", "1"], "--margin and --target are for accuracies", "leave them out, or leave --latency out"),
    ],
    ids=["speed without --latency", "accuracy with it"],
)
def test_options_of_the_other_comparison_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, do: str
) -> None:
    assert _run(monkeypatch, "compare", "a.onnx", "b.onnx", *arguments, "--json") == 2
    (problem,) = json.loads(capsys.readouterr().out)["error"]["problems"]
    assert (problem["message"], problem["do"]) == (message, do)


def test_the_command_prints_one_object_and_exits_by_the_verdict(
    model: ModelMaker, asked_of_gate: list[Pair], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "compare", "--latency", str(model("old")), str(model("new")), "--json") == 4
    told = json.loads(capsys.readouterr().out)
    assert (told["result"]["verdict"], told["exit_code"], told["device"]["name"]) == ("could not tell", 4, "host")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["kdpipe", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.slow
def test_two_files_are_compared_on_a_board_by_its_own_clock(model: ModelMaker, board: Any, tmp_path: Path) -> None:
    settings = board.settings()
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.model_dump(mode="json", exclude_none=True).items()]
    (tmp_path / "kdpipe.toml").write_text('[project]\nname = "p"\n[task]\ndata = "digits"\n[devices.pi]\n' + "\n".join(lines) + "\n")
    device = settings.device("pi", tmp_path)
    device.pin(device.presented_key())
    small, large = (model(name, sides=(1, 8, 8), width=width) for name, width in (("small", 16), ("large", 8192)))
    found = compared(small, large, Asked(device="pi", project=tmp_path, slower_than=50.0, limit_seconds=30))
    assert (found.device.name, found.result.verdict, found.exit_code) == ("pi", "regression", 3)
    assert found.inputs == "64 test samples"


def test_weights_in_another_file_are_compared_and_a_damaged_file_is_the_users_mistake(model: ModelMaker, asked_of_gate: list[Pair], tmp_path: Path) -> None:
    outside, damaged = tmp_path / "outside.onnx", tmp_path / "damaged.onnx"
    onnx.save(onnx.load(model("old")), outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    compared(model("old"), outside)
    assert [pair.new for pair in asked_of_gate] == [outside]
    damaged.write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        compared(model("old"), damaged)
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == ("not a valid ONNX file: it is empty", str(damaged))
    assert problem.do == "export or download it again"
