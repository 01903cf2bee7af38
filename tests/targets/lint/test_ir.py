import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from kdpipe.foundation.errors import VerificationError
from kdpipe.targets.lint import lint
from kdpipe.targets.profile import load_profile

_SPEC = importlib.util.spec_from_file_location("quantized_net", Path(__file__).with_name("quantized_net.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
nets: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(nets)

CPU, GPU, NPU = (load_profile(name, at="test") for name in ("cpu", "gpu", "npu"))


@pytest.fixture
def ir(tmp_path: Path) -> Any:
    """`ir(model)`: the path of the model as OpenVINO writes it."""

    def convert(model: onnx.ModelProto) -> Path:
        import openvino

        source = nets.saved(model, tmp_path)
        openvino.save_model(openvino.Core().read_model(str(source)), str(tmp_path / "net.xml"), compress_to_fp16=False)
        return tmp_path / "net.xml"

    return convert


def rules(path: Path, profile: Any) -> list[tuple[str, str]]:
    return [(finding.rule, finding.severity) for finding in lint(path, profile)]


def test_a_right_ir_breaks_no_rule(ir: Any) -> None:
    assert rules(ir(nets.plain(signed=False)), NPU) == []


def test_ir_is_no_file_for_a_target_without_openvino(ir: Any) -> None:
    (finding,) = lint(ir(nets.plain()), GPU)
    assert (finding.node, finding.rule, finding.severity, finding.reason) == ("file", "format", "error", "OpenVINO IR is not read by onnxruntime")
    assert finding.remedy == "give the target the .onnx file"


def test_float_ir_is_told_so_once(ir: Any) -> None:
    (finding,) = lint(ir(nets.in_float()), NPU)
    assert finding.rule == "float-file"
    assert finding.reason == "the file is float: nothing in it is quantized (convolutions and linear layers: 1)"


def test_a_free_batch_does_not_fit_the_npu_and_a_fixed_one_not_the_cpu(ir: Any) -> None:
    (finding,) = lint(ir(nets.plain(signed=False, sides=("batch", 4, 6, 6))), NPU)
    assert (finding.rule, finding.severity, finding.node) == ("static-shape", "error", "file")
    assert finding.reason == "input 'input' has shape [?,4,6,6], every side must be fixed and the batch 1"
    assert rules(ir(nets.plain(signed=False)), CPU) == [("dynamic-batch", "warning")]


def test_full_weights_saturate_an_x86_cpu_in_ir_as_well(ir: Any) -> None:
    found = lint(ir(nets.conv_with_weight(np.full((4, 4, 1, 1), 127, np.int8), signed=False)()), CPU)
    assert [(finding.rule, finding.severity) for finding in found] == [("weight-range", "error")]
    assert found[0].reason == "weights reach ±127, 7 bits end at ±64: sums of two products may saturate"
    assert rules(ir(nets.conv_with_weight(np.full((4, 4, 1, 1), 63, np.int8), signed=False)()), CPU) == []


def test_a_layer_left_in_float_is_named(ir: Any) -> None:
    (finding,) = lint(ir(nets.half_quantized(False)()), NPU)
    assert (finding.rule, finding.severity) == ("not-quantized", "warning")
    assert finding.node.startswith("conv2")
    assert rules(ir(nets.half_quantized(True)()), NPU) == []


def test_operands_of_two_ranges_are_told_to_the_npu(ir: Any) -> None:
    (finding,) = lint(ir(nets.joined(False)()), NPU)
    assert finding.rule == "unified-scales"
    assert finding.reason == "the operands of Concat have ranges of their own ([-6.4, 6.35], [-25.6, 25.4])"
    assert rules(ir(nets.joined(True)()), NPU) == []


def test_scales_per_channel_are_for_depthwise_convolutions_alone(ir: Any) -> None:
    assert rules(ir(nets.depthwise(1)()), NPU) == [("activation-granularity", "warning")]
    assert rules(ir(nets.depthwise(4)()), NPU) == []


def test_what_float16_does_not_hold_is_told(ir: Any) -> None:
    (finding,) = lint(ir(nets.float_part(1e5)()), NPU)
    assert (finding.rule, finding.severity) == ("float16-overflow", "error")
    assert finding.reason == "its values reach 1e+05, float16 ends at 65504"
    assert rules(ir(nets.float_part(6e4)()), NPU) == []


def test_an_operator_that_the_target_does_not_run_is_found_under_openvino_s_name(ir: Any) -> None:
    nonzero = nets.end_with("NonZero", outputs=("places",), types=(TensorProto.INT64,))
    assert ("forbidden-operator", "error") in rules(ir(nonzero()), NPU)


@pytest.mark.parametrize("fault", ["cut", "no weights"])
def test_ir_that_openvino_cannot_read_fails_verification(ir: Any, fault: str) -> None:
    path = ir(nets.plain(signed=False))
    path.write_text(path.read_text()[:200]) if fault == "cut" else path.with_suffix(".bin").unlink()
    with pytest.raises(VerificationError) as caught:
        lint(path, NPU)
    (problem,) = caught.value.problems
    assert problem.message.startswith("not valid OpenVINO IR: ")
    assert (problem.at, problem.do) == (str(path), "the .bin must lie beside it under the same name; convert it again")
