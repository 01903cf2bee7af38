"""Files that kdpipe did not make: onnxruntime's and NNCF's quantizers, and what each target has against them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from kdpipe.targets.lint import lint
from kdpipe.targets.lint.asking import ask
from kdpipe.targets.profile import load_profile

TARGETS = {name: load_profile(name, at="test") for name in ("cpu", "arm", "gpu", "npu")}


class Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, samples: np.ndarray) -> None:
        self.feeds = iter([{"input": sample[None]} for sample in samples])

    def get_next(self) -> Any:
        return next(self.feeds, None)


@pytest.fixture(scope="session")
def quantized(files: Path, samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`quantized("qdq-u8")`: the float residual network with batch 1 through another tool, made once."""
    folder = tmp_path_factory.mktemp("foreign")
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}

    def static(path: Path, kind: QuantType, form: QuantFormat = QuantFormat.QDQ, **options: Any) -> None:
        quantize_static(
            files / "float-one.onnx",
            path,
            Samples(samples[:8]),
            quant_format=form,
            per_channel=True,
            activation_type=kind,
            weight_type=QuantType.QInt8,
            reduce_range=options.pop("reduce_range", False),
            extra_options=options,
        )

    makers: dict[str, Callable[[Path], None]] = {
        "qdq-u8": lambda path: static(path, QuantType.QUInt8),
        "qdq-u8-reduced": lambda path: static(path, QuantType.QUInt8, reduce_range=True),
        "qdq-s8": lambda path: static(path, QuantType.QInt8, **symmetric),
        "qdq-tensorrt": lambda path: static(path, QuantType.QInt8, **symmetric, QuantizeBias=False, OpTypesToExcludeOutputQuantization=["Conv"]),
        "qoperator": lambda path: static(path, QuantType.QUInt8, QuantFormat.QOperator),
        "dynamic": lambda path: quantize_dynamic(files / "float-one.onnx", path, weight_type=QuantType.QInt8),
    }

    def make(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            makers[name](path)
        return path

    return make


def errors(path: Path, target: str) -> set[str]:
    return {finding.rule for finding in lint(path, TARGETS[target]) if finding.severity == "error"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qdq-u8", {"cpu": {"weight-range"}, "arm": set(), "gpu": {"activation-type", "int32-bias"}, "npu": set()}),
        ("qdq-u8-reduced", {"cpu": set(), "arm": set(), "gpu": {"activation-type", "int32-bias"}, "npu": set()}),
        ("qdq-s8", {"cpu": {"weight-range"}, "arm": set(), "gpu": {"int32-bias"}, "npu": set()}),
        ("qdq-tensorrt", {"cpu": {"weight-range"}, "arm": set(), "gpu": set(), "npu": set()}),
        ("qoperator", {"cpu": {"weight-range"}, "arm": set(), "gpu": {"operator-format", "activation-type"}, "npu": {"operator-format"}}),
        ("dynamic", {"cpu": {"weight-range"}, "arm": set(), "gpu": {"operator-format"}, "npu": {"operator-format"}}),
    ],
    ids=("qdq-u8", "qdq-u8-reduced", "qdq-s8", "qdq-tensorrt", "qoperator", "dynamic"),  # of a set the order would differ from process to process
)
def test_what_makes_a_file_of_onnxruntime_unusable_is_told_for_each_target(quantized: Callable[[str], Path], name: str, expected: dict[str, set[str]]) -> None:
    assert {target: errors(quantized(name), target) for target in TARGETS} == expected


def test_the_operator_format_is_one_finding_that_openvino_confirms(quantized: Callable[[str], Path]) -> None:
    path = quantized("qoperator")
    (finding,) = [finding for finding in lint(path, TARGETS["npu"]) if finding.rule == "operator-format"]
    assert finding.reason.startswith("6 nodes are in ONNX Runtime's operator format: conv1_quant (QLinearConv), ")
    assert finding.reason.endswith(" and 2 more")
    answers = {answer.asked.split()[0]: answer for answer in ask(path, TARGETS["cpu"])}
    assert answers["onnxruntime"].loads is True
    assert answers["openvino"].loads is False
    assert "QLinearConv" in answers["openvino"].said


def test_a_file_that_onnxruntime_optimised_is_for_onnxruntime_alone(files: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(files / "u8-one.onnx"), options, providers=["CPUExecutionProvider"])
    domains = {node.domain for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "com.microsoft" in domains or "com.microsoft.nchwc" in domains
    assert {"operator-format"} <= errors(tmp_path / "optimised.onnx", "npu")
    assert errors(tmp_path / "optimised.onnx", "arm") == set()


@pytest.mark.slow
def test_nncf_s_file_for_the_npu_keeps_the_npu_s_rules(files: Path, samples: np.ndarray, tmp_path: Path) -> None:
    """The rules of scales and signs were taken from its set-up: its own files must pass."""
    nncf = pytest.importorskip("nncf")
    import openvino

    model = openvino.Core().read_model(str(files / "float-one.onnx"))
    data = nncf.Dataset([sample[None] for sample in samples])
    quantized = nncf.quantize(model, data, target_device=nncf.TargetDevice.NPU, subset_size=16)
    openvino.save_model(quantized, str(tmp_path / "nncf.xml"), compress_to_fp16=False)
    assert [(finding.node, finding.rule) for finding in lint(tmp_path / "nncf.xml", TARGETS["npu"])] == []
