import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdpipe.foundation.errors import ConfigError, UnavailableError, VerificationError
from kdpipe.foundation.files import sha256_of, write_json
from kdpipe.pipeline import verify
from kdpipe.pipeline.manifest import manifest
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.verify import verify_bundle


def _model(path: Path) -> None:
    """Two classes from four values: a real file that both runtimes load."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.arange(8, dtype=np.float32))
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    onnx.save(helper.make_model(helper.make_graph(nodes, "tiny", [entry], [out], [weight]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def build(project: Path, tiny: ModuleType) -> BuildResult:
    plan = tiny.plan_of(project, targets=["cpu", "arm"])
    results = run_plan(plan, tiny.STAGES, Store(project), SilentProgress())
    return BuildResult(project, "tiny", plan.config.resolved, "kdpipe build --target cpu --target arm", ("cpu", "arm"), results)


@pytest.fixture
def bundle(build: BuildResult, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    _model(folder / "model.onnx")
    contract = {"inputs": [{"name": "x", "shape": ["n", 1, 2, 2], "low": 0.0, "high": 1.0}], "outputs": [{"name": "y"}], "labels": ["a", "b"]}
    write_json(folder / "contract.json", contract)
    write_json(folder / "manifest.json", manifest(build, "cpu", folder))
    return folder


def test_a_manifest_holds_the_digests_of_all_that_the_bundle_is_made_of_and_from(build: BuildResult, bundle: Path) -> None:
    made = json.loads((bundle / "manifest.json").read_text())
    assert made["files"]["model.onnx"] == {"sha256": sha256_of(bundle / "model.onnx"), "size_bytes": (bundle / "model.onnx").stat().st_size}
    assert set(made["files"]) == {"model.onnx", "contract.json"}
    assert made["data"] == build.results["teacher"].step.identity["data"]
    assert "labels" not in made
    assert made["profile"]["name"] == "cpu"
    assert made["configuration"]["values"] == build.config
    assert made["command"] == "kdpipe build --target cpu --target arm"
    assert set(made["tools"]) == {"python", "numpy"}
    assert made["steps"]["qat@cpu"] == build.results["qat@cpu"].step.fingerprint
    assert not any(name.endswith("@arm") for name in made["steps"])


def test_a_manifest_tells_nothing_of_the_machines_folders_and_is_the_same_every_time(build: BuildResult, bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert str(build.project) not in text
    assert json.loads(text) == manifest(build, "cpu", bundle)


def test_a_sound_bundle_is_verified_and_its_model_answers_in_every_runtime(bundle: Path) -> None:
    found = verify_bundle(bundle)
    assert (found.project, found.target, found.files) == ("tiny", "cpu", 2)
    assert [name.split()[0] for name in found.ran] == ["onnxruntime", "openvino"]


def _flip(folder: Path) -> None:
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


_HUGE = '{"inputs": [{"shape": ["n", 1, 99999, 99999999], "low": 0, "high": 1}], "labels": ["a", "b"]}'


def _name(folder: Path, name: str) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    _edit(folder, files=files | {name: {"sha256": "0" * 64, "size_bytes": 1}})


def _contract(folder: Path, text: str) -> None:
    """Another contract, its digest in the manifest mended to agree."""
    (folder / "contract.json").write_text(text)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    _edit(folder, files=files | {"contract.json": {"sha256": sha256_of(folder / "contract.json"), "size_bytes": len(text)}})


def _edit(folder: Path, **changes: Any) -> None:
    write_json(folder / "manifest.json", json.loads((folder / "manifest.json").read_text()) | changes)


@pytest.mark.parametrize(
    ("harm", "message", "name"),
    [
        (_flip, "the file is not the one that was built: its sha256 differs", "model.onnx"),
        (lambda folder: (folder / "contract.json").unlink(), "the file is missing", "contract.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read: ", "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "the manifest lacks what every manifest has, first project", "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "the manifest lacks what every manifest has", "manifest.json"),
        (lambda folder: _edit(folder, files={"model.onnx": {}}), "the manifest lacks what every manifest has, first files.model.onnx.sha256", "manifest.json"),
        (lambda folder: _edit(folder, files={}), "the manifest names no digest of model.onnx", "manifest.json"),
        (lambda folder: _name(folder, "../../etc/passwd"), "the manifest names a file outside the bundle: ../../etc/passwd", "manifest.json"),
        (lambda folder: _contract(folder, "{}"), "the contract cannot be used: KeyError: 'inputs'", "contract.json"),
        (lambda folder: _contract(folder, "[1]"), "the contract cannot be used: TypeError: ", "contract.json"),
        (lambda folder: _contract(folder, _HUGE), "the contract cannot be used: ", "contract.json"),
        (lambda folder: _edit(folder, target="tpu"), "the manifest names no runtime for its target 'tpu'", "manifest.json"),
    ],
    ids=[
        "flipped byte",
        "missing file",
        "cut off manifest",
        "empty manifest",
        "list for a manifest",
        "file without digest",
        "no files",
        "a file elsewhere",
        "empty contract",
        "list for a contract",
        "huge contract",
        "unknown target",
    ],
)
def test_every_harm_to_a_bundle_is_told(bundle: Path, harm: Callable[[Path], None], message: str, name: str) -> None:
    harm(bundle)
    with pytest.raises(VerificationError) as caught:
        verify_bundle(bundle)
    (problem,) = caught.value.problems
    assert problem.message.startswith(message)
    assert problem.at == str(bundle / name)
    assert problem.do == "copy the bundle again, or run kdpipe build"


def test_a_manifest_of_another_format_asks_for_its_kdpipe(bundle: Path) -> None:
    write_json(bundle / "manifest.json", json.loads((bundle / "manifest.json").read_text()) | {"format": 99})
    with pytest.raises(VerificationError) as caught:
        verify_bundle(bundle)
    (problem,) = caught.value.problems
    assert problem.message == "the manifest is of format 99, this kdpipe reads 1"
    assert problem.do == "use the kdpipe that wrote it"


def test_a_model_that_does_not_load_fails_though_its_digest_agrees(build: BuildResult, bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"no model")
    (bundle / "manifest.json").unlink()
    write_json(bundle / "manifest.json", manifest(build, "cpu", bundle))
    with pytest.raises(VerificationError, match="does not load in onnxruntime"):
        verify_bundle(bundle)


def test_a_model_that_answers_in_another_shape_fails(build: BuildResult, bundle: Path) -> None:
    contract = json.loads((bundle / "contract.json").read_text()) | {"labels": ["a", "b", "c"]}
    write_json(bundle / "contract.json", contract)
    (bundle / "manifest.json").unlink()
    write_json(bundle / "manifest.json", manifest(build, "cpu", bundle))
    with pytest.raises(VerificationError, match=r"answers \(2, 2\), finite \(2, 3\) is expected"):
        verify_bundle(bundle)


def test_a_folder_that_is_no_bundle_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        verify_bundle(tmp_path)
    (problem,) = caught.value.problems
    assert problem.message == "no bundle here"
    assert problem.at == str(tmp_path / "manifest.json")
    assert problem.do == "name a folder that kdpipe build wrote: dist/PROJECT/TARGET"


def test_without_any_runtime_the_answer_is_unavailable(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "runtime_version", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        verify_bundle(bundle)
    (problem,) = caught.value.problems
    assert problem.message == "none of the target's runtimes is installed: onnxruntime, openvino"
    assert problem.at == str(bundle)
    assert problem.do == "python -m pip install onnxruntime openvino; the digests agree"


def test_code_that_a_bundle_names_is_not_imported(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    configuration = json.loads((bundle / "manifest.json").read_text())["configuration"]
    for target in configuration["values"]["targets"].values():
        target["profile"]["runtimes"] = [{"name": "planted:Runtime", "versions": ""}, {"name": "onnxruntime", "versions": ""}]
    _edit(bundle, configuration=configuration)
    assert [ran.split()[0] for ran in verify_bundle(bundle).ran] == ["onnxruntime"]
    assert not (tmp_path / "ran").exists()
