import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline import cli
from kdpipe.pipeline.target_check import check
from kdpipe.pipeline.target_new import new
from kdpipe.targets.profile import load_profile


@dataclass
class Told:
    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def kdpipe(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """The command line in this process."""

    def run(*arguments: str) -> Told:
        as_json = "--json" in arguments
        code = cli.told(lambda: cli.app(args=list(arguments), prog_name="kdpipe", standalone_mode=False), as_json=as_json, debug=False)
        return Told(code, *capsys.readouterr())

    return run


def float_model(batch: int | str = 1) -> onnx.ModelProto:
    """One convolution, in float."""
    weight = numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weight"], ["logits"], name="conv", kernel_shape=[3, 3])],
        "float",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 3, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4, 1, 1])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    onnx.save(float_model(), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.fixture
def unsigned_file(tmp_path: Path) -> Path:
    """A quantizer of u8 before the convolution, weights as they were."""
    model = float_model()
    for name, value in (("scale", np.float32(0.1)), ("zero_point", np.uint8(3))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node[0].input[0] = "read"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["integers", "scale", "zero_point"], ["read"], name="dequantize"))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["input", "scale", "zero_point"], ["integers"], name="quantize"))
    onnx.save(model, tmp_path / "u8.onnx")
    return tmp_path / "u8.onnx"


def bundle_of(folder: Path, model: Path, profile: str, target: str = "mine") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.read_bytes())
    targets = {target: {"profile": load_profile(profile, at="test").model_dump(mode="json")}}
    (folder / "manifest.json").write_text(json.dumps({"target": target, "configuration": {"values": {"targets": targets}}}))
    return folder


def test_the_profiles_are_listed(kdpipe: Callable[..., Told]) -> None:
    listed = kdpipe("targets")
    assert listed.exit_code == 0
    assert "NVIDIA GPU through TensorRT" in listed.out
    assert [profile["name"] for profile in kdpipe("targets", "--json").json["targets"]] == ["arm", "arm-a72", "arm-a76", "cpu", "gpu", "npu"]


def test_a_profile_is_shown_with_the_file_that_each_key_comes_from(kdpipe: Callable[..., Told], tmp_path: Path) -> None:
    (tmp_path / "mid.toml").write_text('extends = "arm"\n[bench]\nseconds = 3.0\n')
    (tmp_path / "board.toml").write_text('extends = "mid.toml"\ntitle = "board"\n[bench]\nthreads = [1]\n')
    shown = kdpipe("targets", "show", str(tmp_path / "board.toml"), "--json").json
    origins = shown["origins"]
    assert [origins[key] for key in ("name", "title", "bench.threads", "bench.seconds", "opset", "calibration.percentile")] == [
        "board.toml",
        "board.toml",
        "board.toml",
        "mid.toml",
        "arm.toml",
        "default",
    ]
    assert shown["profile"]["bench"]["seconds"] == 3.0
    table = kdpipe("targets", "show", str(tmp_path / "board.toml")).out
    assert [line.split() for line in table.splitlines() if line.startswith(" bench.seconds")] == [["bench.seconds", "3.0", "mid.toml"]]


def test_a_runtime_is_shown_with_its_versions_and_whether_it_is_optional(kdpipe: Callable[..., Told]) -> None:
    shown = kdpipe("targets", "show", "arm-a72").out
    assert "onnxruntime >=1.22, onnxruntime-xnnpack >=1.22 optional" in shown
    assert "None" not in shown


def test_a_name_alone_is_shown(kdpipe: Callable[..., Told]) -> None:
    assert kdpipe("targets", "npu").out == kdpipe("targets", "show", "npu").out


def test_what_cannot_be_measured_here_is_told_with_the_reason(kdpipe: Callable[..., Told]) -> None:
    here = kdpipe("targets", "show", "gpu", "--json").json["here"]
    assert here["build"] == "can be built here, checked in onnxruntime"
    assert here["latency"] == "not measured: no device (the target computes on TensorRT, this host has no onnxruntime-tensorrt)"


def test_a_file_is_held_against_several_profiles_and_the_worst_decides(kdpipe: Callable[..., Told], unsigned_file: Path) -> None:
    told = kdpipe("targets", "check", str(unsigned_file), "--profile", "gpu", "--profile", "npu")
    assert told.exit_code == 3
    assert f"{unsigned_file} for gpu: 1 error, 1 warning" in told.out
    assert f"{unsigned_file} for npu: no errors, 1 warning" in told.out
    assert "open: that TensorRT compiles it, its accuracy and its speed there: kdpipe bench BUNDLE --device NAME" in told.out


def test_json_holds_every_finding_with_its_rule_s_source_and_what_the_runtimes_said(kdpipe: Callable[..., Told], unsigned_file: Path) -> None:
    told = kdpipe("targets", "check", str(unsigned_file), "--profile", "gpu", "--json")
    (checked,) = told.json["checks"]
    assert told.exit_code == told.json["exit_code"] == 3
    assert checked["findings"][0] == {
        "node": "quantize",
        "rule": "activation-type",
        "reason": "activations are uint8, the target's scheme has int8",
        "remedy": "quantize activations to int8",
        "severity": "error",
    }
    assert checked["rules"]["activation-type"]["source"].startswith("https://github.com/onnx/onnx-tensorrt")
    host, device = checked["asked"]
    assert (host["asked"].split()[0], host["loads"], host["said"]) == ("onnxruntime", True, "loads the file")
    assert (device["asked"].split()[0], device["loads"]) == ("onnxruntime-tensorrt", None)
    assert "has no TensorrtExecutionProvider" in device["said"]


def test_a_file_with_warnings_alone_exits_with_0(kdpipe: Callable[..., Told], float_file: Path) -> None:
    told = kdpipe("targets", "check", str(float_file), "--profile", "npu")
    assert told.exit_code == 0
    assert "warning   float-file   file" in told.out


def test_the_npu_s_plug_in_is_told_with_its_own_words_where_it_does_not_answer(float_file: Path) -> None:
    (checked,) = check(float_file, ["npu"])
    host, device = checked.answers
    assert host.loads is True
    assert device.loads is None
    assert device.said.startswith("OpenVINO finds no NPU on this machine, it finds CPU")
    assert "its plug-in, asked without a device" in device.said
    assert "/" not in device.said.partition("asked without a device")[2]  # no folder of this machine


def test_a_bundle_is_checked_against_its_own_profile(float_file: Path, tmp_path: Path) -> None:
    (checked,) = check(bundle_of(tmp_path / "dist", float_file, "npu"), [])
    assert (checked.file, checked.profile.name) == (tmp_path / "dist" / "model.onnx", "npu")


def test_a_bundle_of_variants_is_checked_variant_by_variant(float_file: Path, tmp_path: Path) -> None:
    for variant in ("avx2", "vnni"):
        bundle_of(tmp_path / "dist" / variant, float_file, "cpu")
    (tmp_path / "dist" / "manifest.json").write_text(json.dumps({"target": "cpu", "variants": {"avx2": "cpu-avx2", "vnni": "cpu-vnni"}}))
    assert [it.file.parent.name for it in check(tmp_path / "dist", [])] == ["avx2", "vnni"]


def test_a_named_profile_takes_the_place_of_the_bundle_s(float_file: Path, tmp_path: Path) -> None:
    (checked,) = check(bundle_of(tmp_path / "dist", float_file, "npu"), ["gpu"])
    assert checked.profile.name == "gpu"


def test_ir_is_checked_with_the_runtime_that_reads_it(float_file: Path, tmp_path: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(str(float_file)), str(tmp_path / "model.xml"), compress_to_fp16=False)
    (npu,) = check(tmp_path / "model.xml", ["npu"])
    (gpu,) = check(tmp_path / "model.xml", ["gpu"])
    assert [finding.rule for finding in npu.findings] == ["float-file"]
    assert [(finding.rule, finding.severity, finding.reason) for finding in gpu.findings] == [("format", "error", "OpenVINO IR is not read by onnxruntime")]
    assert (npu.exit_code, gpu.exit_code, gpu.answers) == (0, 3, ())


def test_what_a_runtime_of_the_host_refuses_is_an_error_in_its_words(tmp_path: Path) -> None:
    """A product of 3 columns with 4 rows; ONNX's own check does not infer shapes."""
    model = float_model()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 4), np.float32), "weight"))
    model.graph.node[0].CopyFrom(helper.make_node("MatMul", ["input", "weight"], ["logits"], name="product"))
    onnx.save(model, tmp_path / "wrong.onnx")
    (checked,) = check(tmp_path / "wrong.onnx", ["cpu"])
    refused = [finding for finding in checked.findings if finding.rule == "refused"]
    assert {finding.reason.split()[0] for finding in refused} == {"onnxruntime", "openvino"}
    assert {(finding.severity, finding.remedy) for finding in refused} == {("error", "export it again for this runtime")}
    assert checked.exit_code == 3


def unreadable(folder: Path, kind: str) -> Path:
    path = folder / "model.onnx"
    if kind == "cut off":
        path.write_bytes(float_model().SerializeToString()[:60])
    elif kind == "text":
        path.write_text("not a model")
    elif kind == "folder":
        path.mkdir()
    elif kind == "no permission":
        onnx.save(float_model(), path)
        path.chmod(0)
    elif kind == "broken manifest":
        onnx.save(float_model(), path)
        (folder / "manifest.json").write_text("{")
        return folder
    elif kind == "other manifest":
        onnx.save(float_model(), path)
        (folder / "manifest.json").write_text('{"target": "cpu"}')
        return folder
    elif kind == "half IR":
        (folder / "model.xml").write_text('<?xml version="1.0"?><net name="m" version="11"><lay')
        return folder / "model.xml"
    return path


@pytest.mark.parametrize(
    ("kind", "message", "do"),
    [
        ("missing", "no such file and no such bundle", "give the path of a model file, or of a bundle that kdpipe build wrote"),
        ("cut off", "not a valid ONNX file: ", "export or download it again"),
        ("text", "not a valid ONNX file: ", "export or download it again"),
        ("folder", "this folder holds no model.onnx and no model.xml", "give the path of a model file, or of a bundle that kdpipe build wrote"),
        ("broken manifest", "the manifest cannot be read: JSONDecodeError", "name the profile: --profile npu; or build the bundle again"),
        ("other manifest", "the manifest cannot be read: KeyError", "name the profile: --profile npu; or build the bundle again"),
        ("half IR", "not valid OpenVINO IR: ", "the .bin must lie beside it under the same name; convert it again"),
    ],
)
def test_what_cannot_be_read_exits_with_2(kdpipe: Callable[..., Told], tmp_path: Path, kind: str, message: str, do: str) -> None:
    path = unreadable(tmp_path, kind)
    named = () if "manifest" in kind else ("--profile", "npu")
    told = kdpipe("targets", "check", str(path), *named, "--json")
    assert told.exit_code == 2
    (problem,) = told.json["error"]["problems"]
    assert problem["message"].startswith(message)
    assert problem["do"] == do
    assert problem["at"].startswith(str(tmp_path))


def test_a_file_without_a_profile_is_asked_for_one(float_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(float_file, [])
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == (
        "no profile is named",
        str(float_file),
        "name what the file is for: --profile npu; kdpipe targets lists them",
    )


def test_a_variant_without_its_profile_is_refused(float_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(float_file, [], variant="vnni")
    (problem,) = caught.value.problems
    assert (problem.message, problem.do) == ("--variant vnni belongs to a profile", "name it: --profile cpu")


@pytest.mark.parametrize("base", ["arm", "cpu", "gpu", "npu"])
def test_a_new_profile_is_its_parent_under_another_name(kdpipe: Callable[..., Told], tmp_path: Path, base: str) -> None:
    told = kdpipe("targets", "new", "board", "--extends", base, "--folder", str(tmp_path))
    assert (told.exit_code, told.out) == (0, f"wrote {tmp_path / 'board.toml'}\n")
    own, parent = load_profile(tmp_path / "board.toml", at="test"), load_profile(base, at="test")
    assert own.model_copy(update={"name": parent.name, "title": parent.title}) == parent
    assert own.title == f"board, as {base}"


@pytest.mark.parametrize("base", ["arm", "cpu", "gpu", "npu"])
def test_every_line_that_a_new_profile_offers_is_a_key_with_its_parent_s_value(tmp_path: Path, base: str) -> None:
    path = new("board", extends=base, folder=tmp_path)
    text = path.read_text()
    offered = [line.removeprefix("# ") for line in text.splitlines()[3:] if line.startswith("# ") and (" = " in line or line.startswith("# ["))]
    (tmp_path / "all.toml").write_text("\n".join([*text.splitlines()[:4], *offered, ""]))
    own, parent = load_profile(tmp_path / "all.toml", at="test"), load_profile(base, at="test")
    assert own.model_copy(update={"name": parent.name, "title": parent.title, "forbidden": parent.forbidden}) == parent


def test_a_new_profile_may_extend_another_file(tmp_path: Path) -> None:
    new("first", extends="arm", folder=tmp_path)
    assert load_profile(new("second", extends="first.toml", folder=tmp_path), at="test").title == "second, as first.toml"


def test_a_profile_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        new("board", extends="arm", folder=tmp_path)
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == ("a profile of this name is there", str(tmp_path / "board.toml"), "take another name, or edit it")
    assert (tmp_path / "board.toml").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../board", "a/b", ".hidden", "two words", ".toml"])
def test_what_is_no_name_writes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        new(name, extends="arm", folder=tmp_path)
    (problem,) = caught.value.problems
    assert problem.message == f"{name!r} is not a name for a profile"
    assert problem.at == "kdpipe targets new"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_ships_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'arm' is a profile that ships") as caught:
        new("arm", extends="cpu", folder=tmp_path)
    assert caught.value.problems[0].do == "take another name, e.g. my-arm"


def test_an_unknown_parent_is_answered_with_the_nearest_and_nothing_is_written(kdpipe: Callable[..., Told], tmp_path: Path) -> None:
    told = kdpipe("targets", "new", "board", "--extends", "amr", "--folder", str(tmp_path), "--json")
    (problem,) = told.json["error"]["problems"]
    assert (told.exit_code, problem["message"], problem["at"]) == (2, "unknown target profile 'amr'", "--extends")
    assert "did you mean 'arm'?" in problem["do"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        new("board", extends="arm", folder=tmp_path / "none")
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == ("no such folder", str(tmp_path / "none"))


def test_a_new_profile_is_an_ordinary_file(tmp_path: Path) -> None:
    assert stat.S_ISREG(new("board", extends="arm", folder=tmp_path).stat().st_mode)
