import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from kdpipe.foundation.errors import ConfigError, UnavailableError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline.bundle import write_bundle
from kdpipe.pipeline.verify import verify_bundle

EVERY_FILE = {"model.onnx", "contract.json", "scorecard.json", "answers.npz", "bench.json", "manifest.json", "report.html", "predict.py"}
TIMED = {"bench.json", "report.html", "manifest.json"}

# What predict.py may import beside the standard library: the guard stands in front of every other finder.
GUARD = """
import runpy, sys
class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{top} is not allowed here", name=top)
ALLOWED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, OnlyThese())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _predict(bundle: Path, *arguments: str | Path, allowed: str = "numpy,onnxruntime") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", GUARD, allowed, str(bundle / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _batch(*rows: int) -> Any:
    batch = np.zeros((len(rows), 1, 8, 8), np.float32)
    for k, row in enumerate(rows):
        batch[k, 0, row] = 1
    return batch


def _different(first: Path, second: Path) -> set[str]:
    return {name for name in EVERY_FILE if (first / name).read_bytes() != (second / name).read_bytes()}


@pytest.fixture
def bundle(build_folder: Any, tmp_path: Path) -> Path:
    return write_bundle(build_folder.write(), "cpu", (), tmp_path / "dist" / "digits" / "cpu")


def test_a_bundle_holds_what_the_design_says_and_nothing_else(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == EVERY_FILE
    assert [path.name for path in bundle.parent.iterdir()] == ["cpu"]


def test_a_target_with_ir_ships_it_too(build_folder: Any, tmp_path: Path) -> None:
    build = build_folder.write()
    for name in ("model.xml", "model.bin"):
        (build.results["export@cpu"].folder / name).write_bytes(b"ir")
    bundle = write_bundle(build, "cpu", (), tmp_path / "cpu")
    assert {path.name for path in bundle.iterdir()} == EVERY_FILE | {"model.xml", "model.bin"}


def test_the_manifest_knows_every_file_and_the_bundle_verifies(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {name: file["sha256"] for name, file in manifest["files"].items()} == {name: sha256_of(bundle / name) for name in EVERY_FILE - {"manifest.json"}}
    assert manifest["configuration"]["values"]["distill"]["objective"] == "rslad"
    assert verify_bundle(bundle).ran


def test_the_scorecards_are_those_of_the_build_with_the_target_s_alone(bundle: Path) -> None:
    cards = json.loads((bundle / "scorecard.json").read_text())["scorecards"]
    assert [card["model"] for card in cards] == ["teacher", "student", "pruned", "twin", "int8", "int8", "ptq", "ptq"]
    assert cards[4]["clean"]["value"] == pytest.approx(96.9, abs=0.1)


def test_equal_builds_give_equal_bytes_in_all_that_is_not_timed(build_folder: Any, tmp_path: Path) -> None:
    build = build_folder.write()
    first = write_bundle(build, "cpu", (), tmp_path / "first")
    slower = replace(build, results={name: replace(result, seconds=result.seconds + 1) for name, result in build.results.items()})
    second = write_bundle(slower, "cpu", (), tmp_path / "second")
    assert _different(first, second) == TIMED - {"bench.json"}  # these steps' seconds stand in the report, its digest in the manifest


def test_a_build_of_kept_steps_alone_gives_the_same_bytes_everywhere(build_folder: Any, tmp_path: Path) -> None:
    build = build_folder.write()
    first = write_bundle(build, "cpu", (), tmp_path / "first")
    kept = replace(build, results={name: replace(result, state="kept") for name, result in build.results.items()})
    assert _different(first, write_bundle(kept, "cpu", (), tmp_path / "second")) == set()


def test_a_new_bundle_takes_the_place_of_the_old_one_and_of_what_a_killed_writer_left(build_folder: Any, tmp_path: Path) -> None:
    build, destination = build_folder.write(), tmp_path / "cpu"
    for folder in (destination, tmp_path / ".cpu.partial", tmp_path / ".cpu.old"):
        folder.mkdir()
        (folder / "stale").touch()
    write_bundle(build, "cpu", (), destination)
    assert {path.name for path in destination.iterdir()} == EVERY_FILE
    assert not list(tmp_path.glob(".cpu.*"))


def test_a_bundle_that_cannot_be_finished_leaves_the_old_one_as_it_was(build_folder: Any, tmp_path: Path) -> None:
    build, destination = build_folder.write(), tmp_path / "cpu"
    destination.mkdir()
    (destination / "old").touch()
    (build.results["score-export@cpu"].folder / "samples.json").write_text("{")
    with pytest.raises(VerificationError) as caught:
        write_bundle(build, "cpu", (), destination)
    (problem,) = caught.value.problems
    assert "cannot be read as a build's result" in problem.message
    assert (problem.at or "").endswith("samples.json")
    assert "kdpipe build" in (problem.do or "")
    assert [path.name for path in destination.iterdir()] == ["old"]


def test_a_bundle_of_which_a_writer_died_between_the_renames_comes_back(build_folder: Any, tmp_path: Path) -> None:
    build = build_folder.write()
    old = tmp_path / ".cpu.old"
    old.mkdir()
    (old / "kept").touch()
    (tmp_path / ".cpu.partial").write_text("a file that no folder can be made of")
    with pytest.raises(UnavailableError) as caught:
        write_bundle(build, "cpu", (), tmp_path / "cpu")
    (problem,) = caught.value.problems
    assert problem.message.startswith("cannot write: ")
    assert problem.at == str(tmp_path / "cpu")
    assert "finished work is kept" in (problem.do or "")
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == ["kept"]


def test_there_is_no_bundle_of_a_build_that_ended_early(build_folder: Any, tmp_path: Path) -> None:
    build_folder.until = "prune"
    with pytest.raises(ConfigError) as caught:
        write_bundle(build_folder.write(), "cpu", (), tmp_path / "cpu")
    (problem,) = caught.value.problems
    assert problem.message == "there is no bundle of 'cpu' before its last stage"
    assert problem.at == str(tmp_path / "cpu")
    assert problem.do == "build without --until"


def test_predict_labels_a_batch_with_numpy_and_the_runtime_alone(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", _batch(3, 5))
    result = _predict(bundle, "--npy", tmp_path / "batch.npy", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    predictions = json.loads(result.stdout)["predictions"]
    assert [row["label"] for row in predictions] == ["3", "5"]
    expected = np.exp(10) / (np.exp(10) + 9)
    assert predictions[0]["probabilities"]["3"] == pytest.approx(expected, rel=1e-5)  # float32 softmax


def test_predict_reads_an_image_where_pillow_is_there(bundle: Path, tmp_path: Path) -> None:
    pixels = (_batch(6)[0, 0] * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "six.png")
    result = _predict(bundle, tmp_path / "six.png", allowed="numpy,onnxruntime,PIL")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{tmp_path / 'six.png'}: 6 (100.0 %)")


def test_predict_without_pillow_says_what_else_works(bundle: Path, tmp_path: Path) -> None:
    result = _predict(bundle, tmp_path / "six.png")
    assert result.returncode == 4
    assert result.stderr == "error: reading image files needs Pillow\n  do:  pip install pillow, or use --npy\n"


def test_predict_without_the_runtime_names_it(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", _batch(3))
    result = _predict(bundle, "--npy", tmp_path / "batch.npy", allowed="numpy")
    assert (result.returncode, result.stderr) == (4, "error: onnxruntime is not installed\n  do:  pip install onnxruntime\n")


@pytest.mark.parametrize(
    ("batch", "message", "do"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), "the shape is (2, 3, 8, 8); the model takes float32 of shape (n, 1, 8, 8) in [0, 1]", "reshape the batch"),
        (np.full((2, 1, 8, 8), 255, np.float32), "the values reach from 255 to 255", "bytes are divided by 255"),
        (np.zeros((2, 1, 8, 8), np.uint8), "the values are uint8", "divide the bytes by 255"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "the batch holds NaN or infinity", "give float32"),
        (np.zeros((0, 1, 8, 8), np.float32), "the shape is (0, 1, 8, 8)", "reshape the batch"),
    ],
    ids=["shape", "range", "type", "NaN", "empty"],
)
def test_predict_refuses_what_is_not_in_the_contract(bundle: Path, tmp_path: Path, batch: Any, message: str, do: str) -> None:
    np.save(tmp_path / "batch.npy", batch)
    result = _predict(bundle, "--npy", tmp_path / "batch.npy")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert f"  do:  {do}" in result.stderr or do in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_refuses_an_image_of_another_size_unless_told_to_scale_it(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "white").save(tmp_path / "large.png")
    refused = _predict(bundle, tmp_path / "large.png", allowed="numpy,onnxruntime,PIL")
    assert refused.returncode == 2
    assert "is 16×16; the model takes 8×8" in refused.stderr
    assert "give --resize" in refused.stderr
    assert _predict(bundle, tmp_path / "large.png", "--resize", allowed="numpy,onnxruntime,PIL").returncode == 0


def test_predict_will_not_run_a_model_that_is_not_the_manifest_s(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", _batch(3))
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    result = _predict(bundle, "--npy", tmp_path / "batch.npy")
    assert result.returncode == 5
    assert result.stderr.startswith("error: model.onnx is not the file that manifest.json describes")
    assert "copy the whole bundle again" in result.stderr


def test_predict_without_a_digest_to_check_against_refuses_to_run(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", _batch(3))
    (bundle / "manifest.json").write_text("{}")
    result = _predict(bundle, "--npy", tmp_path / "batch.npy")
    assert result.returncode == 5
    assert result.stderr.startswith("error: manifest.json does not name the model's digest")
    assert "copy the whole bundle again" in result.stderr


def test_predict_runs_a_file_of_static_batch_on_any_number_of_samples(bundle: Path, tmp_path: Path) -> None:

    model = onnx.load(bundle / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, bundle / "model.onnx")
    contract = json.loads((bundle / "contract.json").read_text())
    contract["inputs"][0]["shape"][0] = 2
    (bundle / "contract.json").write_text(json.dumps(contract))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = sha256_of(bundle / "model.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    np.save(tmp_path / "batch.npy", _batch(3, 5, 7))
    result = _predict(bundle, "--npy", tmp_path / "batch.npy", "--json")
    assert [row["label"] for row in json.loads(result.stdout)["predictions"]] == ["3", "5", "7"]
