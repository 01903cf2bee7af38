"""The rules by name: what each says, on which device classes its breach makes a file unusable, and where it is written.

docs/targets.md has this table, generated; a test compares.
"""

from dataclasses import dataclass

from kdpipe.targets.profile import DeviceClass

_ALL: frozenset[DeviceClass] = frozenset({"x86-cpu", "arm-cpu", "nvidia-gpu", "intel-npu"})
_GPU: frozenset[DeviceClass] = frozenset({"nvidia-gpu"})
_NPU: frozenset[DeviceClass] = frozenset({"intel-npu"})
_NONE: frozenset[DeviceClass] = frozenset()

_MEASURED = "docs/decisions/seven-bit-weights.md"
_ONNX = "https://onnx.ai/onnx/operators/"
_TRT_OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
_TRT_EXPLICIT = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
_TRT_QUANTIZE = "https://docs.nvidia.com/deeplearning/tensorrt/api/c_api/classnvinfer1_1_1_i_quantize_layer.html"
_TRT_BIAS = "https://github.com/microsoft/onnxruntime/issues/14229"
_OPENVINO_NPU = "https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/npu-device.html"
_NNCF_NPU = "https://github.com/openvinotoolkit/nncf/blob/develop/src/nncf/common/hardware/setups/npu.py"
_PLACEMENT = "docs/quantization.md"
_SCHEMES = "docs/decisions/further-schemes.md"


@dataclass(frozen=True)
class Rule:
    """`error_on`: device classes that refuse a file which breaks it, or compute something else; elsewhere the breach is a warning."""

    says: str
    error_on: frozenset[DeviceClass]
    source: str


RULES: dict[str, Rule] = {
    # the file
    "format": Rule("the target's runtimes do not read this kind of file", _ALL, "docs/targets.md"),
    "no-nodes": Rule("the graph computes nothing", _ALL, _ONNX),
    "opset": Rule("the opset is outside the target's range", _ALL, _TRT_OPERATORS),
    "float-file": Rule("nothing in the file is quantized: it runs, in float", _NONE, _PLACEMENT),
    "float64": Rule("values of 64 bits, which the chip does not compute with: they are cast or clamped", _NONE, _TRT_OPERATORS),
    "static-shape": Rule("a side that is not fixed", _NPU, _OPENVINO_NPU),
    "dynamic-batch": Rule("a batch that is fixed where the target leaves it free", _NONE, "docs/targets.md"),
    # operators
    "foreign-operator": Rule("an operator of one runtime alone", frozenset({"x86-cpu", "nvidia-gpu", "intel-npu"}), _TRT_OPERATORS),
    "forbidden-operator": Rule("an operator that the target does not run", _ALL, _TRT_OPERATORS),
    "operator-restriction": Rule("a form of an operator that the target does not run", _ALL, _TRT_OPERATORS),
    "operator-format": Rule("quantized operators (QLinearConv, ConvInteger) instead of Q/DQ around standard ones", _GPU | _NPU, _TRT_OPERATORS),
    "control-flow": Rule("If, Loop or Scan: what is inside is checked, whether the chip runs it is not known", _NONE, _OPENVINO_NPU),
    "keep-float": Rule("an operator that should not be quantized and is", _NONE, _PLACEMENT),
    # activations
    "scale": Rule("a scale that is not finite and above 0", _ALL, _TRT_QUANTIZE),
    "dynamic-scale": Rule("a scale or zero point that is computed at run time", _GPU, _TRT_OPERATORS),
    "activation-type": Rule("activations of another type than the target computes with", _GPU, _TRT_OPERATORS),
    "activation-granularity": Rule("activations with more than one scale", _NONE, _TRT_EXPLICIT),
    "zero-point": Rule("a zero point where the target takes symmetric values only", _GPU, _TRT_OPERATORS),
    # weights
    "weight-type": Rule("weights of another type than int8", _GPU, _TRT_OPERATORS),
    "weight-range": Rule("weights beyond the scheme's range, so that sums of two products may saturate 16 bits", frozenset({"x86-cpu"}), _MEASURED),
    "weight-zero-point": Rule("weights with a zero point", _GPU, _TRT_OPERATORS),
    "weight-granularity": Rule("weights with one scale where the scheme has one a channel, or the other way round", _NONE, _TRT_EXPLICIT),
    "weight-axis": Rule("weights scaled along another axis than their output channels", _GPU, _TRT_EXPLICIT),
    "weight-kind": Rule("weights of another type than the scheme's (weights-only: int8, float16: float16)", _NONE, _SCHEMES),
    "weight-each-time": Rule("an int8 weight that a float layer dequantizes in each inference", _NONE, _SCHEMES),
    "activation-kind": Rule("quantized activations where the scheme leaves them in float", _NONE, _SCHEMES),
    "int32-bias": Rule("a bias of int32 behind DequantizeLinear", _GPU, _TRT_BIAS),
    # placement
    "not-quantized": Rule("a layer left in float among quantized ones", _NONE, _PLACEMENT),
    "split-activation": Rule("a quantizer between a layer and its activation", _NONE, _TRT_EXPLICIT),
    "float-output": Rule("int8 goes in, float comes out: the operator computes in float", _NONE, _TRT_EXPLICIT),
    "float-residual": Rule("a residual sum whose shortcut is float: the layer before it cannot give int8", _NONE, _TRT_EXPLICIT),
    "quantized-residual": Rule("a quantizer between a layer and the residual sum that it could take in", _NONE, _TRT_EXPLICIT),
    "unified-scales": Rule("operands of a concatenation with scales of their own: the chip scales them anew", _NONE, _NNCF_NPU),
    "unpaired": Rule("Q and DQ that are no pair", _NONE, _PLACEMENT),
    # float16
    "float16-overflow": Rule("float values beyond 65504, infinite in the chip's float16", _NPU, _OPENVINO_NPU),
    "float16-underflow": Rule("a scale that is 0 in the chip's float16", _NPU, _OPENVINO_NPU),
}

_CLASSES: dict[DeviceClass, str] = {"x86-cpu": "cpu", "arm-cpu": "arm", "nvidia-gpu": "gpu", "intel-npu": "npu"}


def rules_table() -> str:
    """The rules as the table of docs/targets.md; ends with a newline."""
    rows = [["rule", "a breach is", "unusable on", "written in"], ["---"] * 4]
    for name, rule in RULES.items():
        where = "all" if rule.error_on == _ALL else ", ".join(sorted(_CLASSES[each] for each in rule.error_on)) or "–"
        source = f"[{rule.source.split('/')[2]}]({rule.source})" if rule.source.startswith("http") else f"[{rule.source}]({rule.source.removeprefix('docs/')})"
        rows.append([f"`{name}`", rule.says, where, source])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
