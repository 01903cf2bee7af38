import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.targets.lint import lint
from kdpipe.targets.profile import load_profile

_SPEC = importlib.util.spec_from_file_location("quantized_net", Path(__file__).with_name("quantized_net.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
nets: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(nets)

GPU, NPU = (load_profile(name, at="test") for name in ("gpu", "npu"))


def external(location: str, **keys: str) -> onnx.ModelProto:
    """A float convolution whose weight lies in another file."""
    model = nets.in_float()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **keys}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


def claiming(*sides: int, content: bytes = b"abcd") -> onnx.ModelProto:
    """A weight of this shape with four bytes."""
    model = nets.in_float()
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(sides)
    tensor.raw_data = content
    return model


def recursive() -> onnx.ModelProto:
    node = helper.make_node("F", ["x"], ["y"], domain="own")
    function = helper.make_function("own", "F", ["x"], ["y"], [node], [helper.make_opsetid("own", 1)])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19), helper.make_opsetid("own", 1)], ir_version=10, functions=[function])


def looping() -> onnx.ModelProto:
    """Two nodes that wait for each other."""
    model = nets.in_float()
    model.graph.node.extend([helper.make_node("Identity", ["b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])])
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nets.plain().SerializeToString()[:-40], ""),
        (lambda: b"\x08\x0a" + b"\xff" * 400, ""),
        (lambda: b"PK\x03\x04 a zip archive", ""),
        (lambda: external("weights.bin").SerializeToString(), "weights.bin"),
        (lambda: external("../../../etc/passwd").SerializeToString(), "points outside the directory"),
        (lambda: external("/etc/passwd").SerializeToString(), "should be a relative path"),
        (lambda: claiming(1 << 20, 1 << 20).SerializeToString(), "raw_data size (4 bytes) is too small"),
        (lambda: recursive().SerializeToString(), "must not be recursive"),
        (lambda: looping().SerializeToString(), "topologically sorted"),
    ],
    ids=[
        "cut off",
        "noise",
        "another kind",
        "external data missing",
        "external data elsewhere",
        "absolute external data",
        "claims 4 TB",
        "recursion",
        "a cycle",
    ],
)
def test_what_a_file_claims_is_not_believed(tmp_path: Path, make: Any, words: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(make())
    with pytest.raises(VerificationError) as caught:
        lint(path, GPU)
    (problem,) = caught.value.problems
    assert problem.message.startswith("not a valid ONNX file: ")
    assert words in problem.message
    assert len(problem.message) < 400
    assert (problem.at, problem.do) == (str(path), "export or download it again")


def test_external_data_that_is_too_short_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abcd")
    path = tmp_path / "net.onnx"
    path.write_bytes(external("weights.bin", offset="0", length="4").SerializeToString())
    with pytest.raises(VerificationError, match="not a valid ONNX file"):
        lint(path, NPU)  # whose rules read every constant


def test_weights_in_another_file_are_read_where_a_rule_needs_them(tmp_path: Path) -> None:
    model = nets.float_part(1e5)()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True)
    assert (tmp_path / "weights.bin").stat().st_size > 0
    assert "float16-overflow" in [finding.rule for finding in lint(tmp_path / "net.onnx", NPU)]


def test_a_large_initializer_is_judged_as_any(tmp_path: Path) -> None:
    weight = np.full((4, 250_000, 1, 1), 1e5, np.float32)
    net = nets.Net(sides=(1, 250_000, 1, 1))
    value = net.op("Conv", ["input", net.constant("weight", weight)], "conv", kernel_shape=[1, 1])
    rules = [finding.rule for finding in lint(nets.saved(net.model(value), tmp_path), NPU)]
    assert rules == ["float-file", "float16-overflow"]


def test_an_infinite_mask_is_what_the_network_means(tmp_path: Path) -> None:
    net = nets.Net()
    mask = net.constant("mask", np.array([0, -np.inf, 0, 0, 0, 0], np.float32))
    path = nets.saved(net.model(net.op("Add", [net.conv(net.quantized("input"), "conv"), mask], "masked")), tmp_path)
    assert lint(path, NPU) == ()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        lint(tmp_path, GPU)
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == ("this is a folder, not a model file", str(tmp_path))
    assert problem.do == "give the path of an .onnx or .xml file, or of a bundle that kdpipe build wrote"


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="no such model file"):
        lint(tmp_path / "net.onnx", GPU)


def test_the_values_of_a_constant_node_count_as_those_of_an_initializer(tmp_path: Path) -> None:
    net = nets.Net()
    value = net.conv(net.quantized("input"), "conv")
    net.nodes.append(helper.make_node("Constant", [], ["factor"], value=numpy_helper.from_array(np.float32(1e6), "factor")))
    path = nets.saved(net.model(net.op("Mul", [value, "factor"], "end")), tmp_path)
    assert [finding.rule for finding in lint(path, NPU)] == ["float16-overflow"]
