"""What is asked of the runtimes that kdpipe requires beyond the contract (`test_contract.py`), and how a runtime is found."""

from importlib import metadata

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kdpipe.foundation.errors import ConfigError, UnavailableError, VerificationError
from kdpipe.foundation.predictor import Predictor
from kdpipe.targets.devices import agent
from kdpipe.targets.runtimes.runtime import open_session, require_runtime, runtime_names, runtime_version, session_name

RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture(params=RUNTIMES)
def runtime(request) -> str:
    return request.param


def the_problem(caught):
    (problem,) = caught.value.problems
    return problem


def test_each_provider_and_device_is_a_runtime_by_itself():
    assert runtime_names() == sorted([*agent.PROVIDERS, *agent.OPENVINO_DEVICES])


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        ("onnxruntime", "onnxruntime 1.32.0 CPU"),
        ("onnxruntime-xnnpack", "onnxruntime 1.32.0 XNNPACK"),
        ("onnxruntime-tensorrt", "onnxruntime 1.32.0 TensorRT"),
        ("openvino-npu", "openvino 1.32.0 NPU"),
        ("my_runtimes:own-one", "my_runtimes:own-one 1.32.0 CPU"),
    ],
)
def test_figures_are_filed_under_runtime_version_and_what_computes(runtime, name):
    assert session_name(runtime, "1.32.0") == name


def test_a_session_is_a_predictor_and_names_runtime_version_and_processor(runtime, files):
    with open_session(runtime, files / "u8.onnx") as session:
        assert isinstance(session, Predictor)
        assert session.name == f"{runtime} {metadata.version(runtime)} CPU" == f"{runtime} {runtime_version(runtime)} CPU"


@pytest.mark.parametrize(("name", "tolerance"), [("float.onnx", 1e-5), ("u8.onnx", 0.05)], ids=["float", "int8"])
def test_logits_are_those_of_onnx_s_reference_evaluation(runtime, files, samples, name, tolerance):
    # int8: a value at the edge between two steps may round either way and move a logit (spread about 4) by a step's weight
    expected = ReferenceEvaluator(str(files / name)).run(None, {"input": samples})[0]
    with open_session(runtime, files / name) as session:
        logits = session(samples)
    assert (logits.dtype, logits.shape) == (np.float32, (40, 10))
    np.testing.assert_allclose(logits, expected, atol=tolerance)


@pytest.mark.parametrize("shape", [(40, 1, 8, 7), (1, 8, 8), (0, 1, 8, 8)], ids=["side", "no batch", "empty"])
def test_a_wrong_shape_is_told_with_the_right_one(runtime, files, shape):
    with open_session(runtime, files / "u8.onnx") as session, pytest.raises(ConfigError) as caught:
        session(np.zeros(shape, np.float32))
    problem = the_problem(caught)
    assert problem.message == f"the batch has shape {shape}, the model takes (n, 1, 8, 8) with n >= 1"
    assert (problem.at, problem.do) == (str(files / "u8.onnx"), "give samples of the shape that contract.json names")


@pytest.mark.parametrize("batch", [np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 8, 8), np.uint8), [[0.0]]], ids=["float64", "uint8", "list"])
def test_a_wrong_type_is_told_with_the_right_one(runtime, files, batch):
    with open_session(runtime, files / "u8.onnx") as session, pytest.raises(ConfigError) as caught:
        session(batch)
    problem = the_problem(caught)
    assert problem.message == f"the batch is {getattr(batch, 'dtype', 'list')}, the model takes float32"
    assert (problem.at, problem.do) == (str(files / "u8.onnx"), "convert it: numpy.asarray(batch, dtype=numpy.float32)")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(runtime, files, samples, value):
    batch = samples.copy()
    batch[3, 0, 2, :2] = value
    with open_session(runtime, files / "u8.onnx") as session, pytest.raises(ConfigError) as caught:
        session(batch)
    problem = the_problem(caught)
    assert problem.message == "the batch holds 2 values that are NaN or infinite"
    assert (problem.at, problem.do) == (str(files / "u8.onnx"), "find where they come from; the model takes finite values")


@pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "text", "cut off"])
def test_a_damaged_file_fails_verification(runtime, files, tmp_path, content):
    path = tmp_path / "model.onnx"
    whole = (files / "u8.onnx").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(VerificationError) as caught:
        open_session(runtime, path)
    problem = the_problem(caught)
    assert caught.value.exit_code == 5
    assert problem.message.startswith(f"the file does not load in {runtime}: ")
    assert problem.at == str(path)
    assert problem.do == "build it again; a file from elsewhere: check it with onnx.checker"


def test_a_missing_file_is_the_user_s_mistake(runtime, tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_session(runtime, tmp_path / "model.onnx")
    problem = the_problem(caught)
    assert (problem.message, problem.at, problem.do) == ("no such model file", str(tmp_path / "model.onnx"), "check the path")


def test_a_file_of_two_inputs_or_outputs_is_no_classifier(runtime, tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y", "sum", "difference")]
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Sub", ["x", "y"], ["difference"])]
    model = helper.make_model(helper.make_graph(nodes, "two", value[:2], value[2:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    with pytest.raises(VerificationError) as caught:
        open_session(runtime, path)
    problem = the_problem(caught)
    assert "the file takes 2 inputs and gives 2 outputs" in problem.message
    assert (problem.at, problem.do) == (str(path), "export the network alone, from the raw float32 batch to the logits")


def test_an_input_that_is_not_float32_is_no_classifier(runtime, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        "bytes",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    path = tmp_path / "bytes.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(VerificationError) as caught:
        open_session(runtime, path)
    assert "one float32 input" in the_problem(caught).message


def test_a_missing_runtime_is_unavailable_with_the_command_that_installs_it(runtime, files, monkeypatch):
    def nothing(distribution: str) -> str:
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr("kdpipe.targets.runtimes.runtime.metadata.version", nothing)
    assert runtime_version(runtime) is None
    with pytest.raises(UnavailableError) as caught:
        open_session(runtime, files / "u8.onnx", versions=">=1.22")
    problem = the_problem(caught)
    assert caught.value.exit_code == 4
    assert (problem.message, problem.at) == (f"the runtime {runtime} is not installed", str(files / "u8.onnx"))
    assert problem.do == f"python -m pip install '{runtime}>=1.22'"


def test_a_wrong_version_is_unavailable_with_both_versions(runtime, files):
    installed = runtime_version(runtime)
    assert require_runtime(runtime, f"=={installed}") == installed
    with pytest.raises(UnavailableError) as caught:
        open_session(runtime, files / "u8.onnx", versions=">=9999,<10000")
    problem = the_problem(caught)
    assert problem.message == f"{runtime} {installed} is installed, >=9999,<10000 is needed"
    assert (problem.at, problem.do) == (str(files / "u8.onnx"), f"python -m pip install '{runtime}>=9999,<10000'")


def test_an_unknown_runtime_is_answered_with_the_known_ones(files):
    with pytest.raises(ConfigError) as caught:
        open_session("tensorrt", files / "u8.onnx")
    problem = the_problem(caught)
    assert (problem.message, problem.at) == ("unknown runtime 'tensorrt'", "runtime of u8.onnx")
    assert problem.do == f"known: {', '.join(runtime_names())}; your own: package.module:name"


def test_explain_finds_every_layer_of_a_right_file_in_int8(runtime, files, samples):
    with open_session(runtime, files / "u8.onnx") as session:
        explanation = session.explain(samples)
    assert explanation.runtime == session.name
    assert explanation.int8_share == 1.0
    of_any_file = {"small-layers", "layout", "dynamic-shape", "first-run", "missing-instruction", "memory-bound"}
    assert {finding.cause for finding in explanation.findings} <= of_any_file


def test_explain_finds_no_int8_in_a_float_file(runtime, files, samples):
    with open_session(runtime, files / "float.onnx") as session:
        explanation = session.explain(samples)
    assert explanation.int8_share == 0.0
    assert {node.precision for node in explanation.nodes} == {"float32"}
