import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from typer.testing import CliRunner

from kdpipe.foundation.errors import ConfigError, KdpipeError, UnavailableError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline.cli import app
from kdpipe.pipeline.explain_command import answers, headline
from kdpipe.pipeline.explaining import Explained, explain
from kdpipe.targets.measurements import Explanation, Finding, NodePrecision
from kdpipe.targets.runtimes.contract import Subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    made: Path = tmp_path_factory.mktemp("explained")
    for kind in ("float", "int8", "int8-static"):
        Subject("onnxruntime", made).file(kind)
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch: Any) -> None:
    monkeypatch.setattr("kdpipe.targets.timing.TIMED_SECONDS", 0.02)
    monkeypatch.setattr("kdpipe.targets.timing.STEADY", 1e9)  # what a busy machine does to claims is test_timing.py's
    monkeypatch.setattr("kdpipe.targets.devices.agent.interruptions", lambda: 0)
    monkeypatch.setattr("kdpipe.targets.timing.interruptions", lambda: 0)
    monkeypatch.setattr("kdpipe.targets.runtimes.onnxruntime_view.SECONDS", 0.02)


class Noise(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, batches: int) -> None:
        draws = np.random.default_rng(0)
        self.left = [{"input": draws.random((1, 1, 8, 8), dtype=np.float32)} for _ in range(batches)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def refused(error: type[KdpipeError], subject: Path, **more: Any) -> tuple[str, str, str]:
    with pytest.raises(error) as caught:
        explain(subject, **more)
    (problem,) = caught.value.problems
    return problem.message, str(problem.at), problem.do


def test_a_file_is_explained_in_the_runtimes_that_are_named_against_its_float_file(folder: Path) -> None:
    found = explain(folder / "int8.onnx", runtimes=["onnxruntime"], against=folder / "float.onnx")
    (explanation,) = found.explanations
    assert explanation.ratio_to_float is not None
    assert (found.against, found.inputs, found.not_asked) == (str(folder / "float.onnx"), "noise in [0, 1]", {})


def test_what_is_not_named_is_left_out_with_the_reason_where_it_is_not_here(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("kdpipe.pipeline.explaining.DEFAULT_RUNTIMES", ("onnxruntime", "openvino-npu"))
    found = explain(folder / "int8-static.onnx")
    assert [it.runtime.split()[0] for it in found.explanations] == ["onnxruntime"]
    assert found.not_asked == {"openvino-npu": "OpenVINO finds no NPU on this machine, it finds CPU"}


def test_a_runtime_that_is_named_and_not_here_is_an_error(folder: Path) -> None:
    message, _, do = refused(UnavailableError, folder / "int8.onnx", runtimes=["onnxruntime", "openvino-npu"])
    assert message == "OpenVINO finds no NPU on this machine, it finds CPU"
    assert "driver" in do


def test_the_range_and_shape_of_the_samples_come_from_the_contract(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((folder / "int8.onnx").read_bytes())
    (tmp_path / "contract.json").write_text(json.dumps({"inputs": [{"shape": ["batch", 1, 8, 8], "low": -1.0, "high": 1.0}]}))
    assert explain(model, runtimes=["onnxruntime"]).inputs == "noise in [-1, 1]"


def test_samples_of_the_user_s_own_are_taken_and_checked(folder: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npy", tmp_path / "bad.npy"
    np.save(good, np.zeros((2, 1, 8, 8), np.float32))
    np.save(bad, np.zeros((2, 1, 8, 8)))
    assert explain(folder / "int8.onnx", runtimes=["onnxruntime"], inputs=good).inputs == str(good)
    assert refused(ConfigError, folder / "int8.onnx", inputs=bad) == ("the samples are float64 (2, 1, 8, 8)", str(bad), "save float32 samples, the batch first")
    bad.write_text("no numbers")
    assert refused(ConfigError, folder / "int8.onnx", inputs=bad)[0].startswith("the samples cannot be read")


def test_a_bundle_of_the_store_is_compared_with_its_own_float_file(folder: Path, tmp_path: Path) -> None:
    bundle, kept = tmp_path / "dist" / "p" / "cpu", tmp_path / ".kdpipe" / "store" / "abc"
    for made in (bundle, kept):
        made.mkdir(parents=True)
    (bundle / "model.onnx").write_bytes((folder / "int8.onnx").read_bytes())
    (kept / "float.onnx").write_bytes((folder / "float.onnx").read_bytes())
    profile = {"runtimes": [{"name": "onnxruntime", "versions": ""}]}
    values = {"targets": {"cpu": {"profile": profile}}}
    (bundle / "contract.json").write_text(json.dumps({"inputs": [{"shape": ["batch", 1, 8, 8], "low": 0.0, "high": 1.0}]}))
    for name in ("variants.json", "arithmetic.onnx"):
        (bundle / name).write_text("{}")
    files = {path.name: {"sha256": sha256_of(path), "size_bytes": path.stat().st_size} for path in bundle.iterdir()}
    manifest = {"project": "p", "target": "cpu", "files": files, "configuration": {"values": values}, "steps": {"export@cpu": "abc"}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    found = explain(bundle)
    assert found.against == str(kept / "float.onnx")
    assert [it.runtime.split()[0] for it in found.explanations] == ["onnxruntime"]
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "variants": {"default": "cpu", "vnni": "cpu-vnni"}}))
    message, _, do = refused(ConfigError, bundle)
    assert message == "the bundle has several variants"
    assert do == f"name one of them: {bundle / 'default'} or {bundle / 'vnni'}"


def test_what_is_no_file_and_no_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    assert refused(ConfigError, tmp_path / "no.onnx")[0] == "no such file or bundle"
    assert refused(ConfigError, tmp_path)[0] == "the folder is no bundle: it has no manifest.json"
    assert refused(ConfigError, folder / "int8.onnx", against=tmp_path / "no.onnx")[0] == "no such model file"


def test_the_command_prints_nodes_and_answers_or_one_object(folder: Path) -> None:
    arguments = ["explain", str(folder / "int8.onnx"), "--runtime", "onnxruntime", "--against", str(folder / "float.onnx")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "QLinearConv" in shown.stdout
    assert "times as fast as float" in shown.stdout
    printed = Explained.model_validate_json(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert printed.explanations[0].nodes


def test_answers_are_lines_with_share_cause_and_what_to_do() -> None:
    node = NodePrecision(name="a", operator="Conv", precision="int8")
    findings = (Finding(cause="layout", text="seen", share=0.125, remedy="turn"), Finding(text="of an old file"))
    told = Explanation(runtime="r 1 CPU", nodes=(node,), int8_share=1.0, findings=findings, threads=2, milliseconds=0.5, ratio_to_float=0.8)
    assert answers(told) == [" 12%  layout: seen", "      do: turn", "   –  finding: of an old file"]
    assert headline(told) == "r 1 CPU, 2 threads: 0.500 ms, 1.25 times as fast as float; 100 % of the convolutions and linear layers in int8"
    assert answers(told.model_copy(update={"findings": ()})) == ["nothing was found that keeps int8 from being faster"]
    assert answers(told.model_copy(update={"findings": (), "nodes": ()})) == ["the runtime tells nothing of itself"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "it is empty"), (b"hello, this is no model\n" * 9, ""), (None, "")],
    ids=["empty", "text", "cut off"],
)
def test_a_file_that_is_no_model_is_the_user_s_mistake(folder: Path, tmp_path: Path, content: bytes | None, words: str) -> None:
    model = tmp_path / "bad.onnx"
    whole = (folder / "float.onnx").read_bytes()
    model.write_bytes(whole[: len(whole) // 2] if content is None else content)
    message, at, do = refused(ConfigError, model)
    assert message.startswith(f"not a valid ONNX file: {words}")
    assert (at, do) == (str(model), "export or download it again")


def test_a_file_whose_weights_lie_beside_it_is_explained(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "out side.onnx"
    onnx.save(onnx.load(folder / "int8.onnx"), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (explanation,) = explain(model, runtimes=["onnxruntime"]).explanations
    assert explanation.int8_share == explain(folder / "int8.onnx", runtimes=["onnxruntime"]).explanations[0].int8_share
    (tmp_path / "weights.bin").unlink()
    message, at, _ = refused(ConfigError, model)
    assert "weights.bin" in message
    assert at == str(model)


def test_a_runtime_that_does_not_take_the_file_leaves_the_answer_of_the_other(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "operators.onnx"
    quantize_static(str(folder / "float.onnx"), str(model), Noise(4), quant_format=QuantFormat.QOperator)
    found = explain(model)
    assert [it.runtime.split()[0] for it in found.explanations] == ["onnxruntime"]
    assert found.not_asked["openvino"].startswith("the file does not load in openvino")
    assert refused(VerificationError, model, runtimes=["openvino"])[0] == found.not_asked["openvino"]
