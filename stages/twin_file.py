"""A frozen twin as the content of the file that its scheme means."""

from torch import nn

from kdpipe.foundation.networks import InputContract
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.compressed import computing_in_float16, folded_at_load, stored_in_float16
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.zero_points import with_own_zero_points
from kdpipe.targets.profile import Profile


def twin_file(twin: nn.Module, contract: InputContract, profile: Profile) -> bytes:
    """The ONNX file that computes what the frozen `twin` of the profile's scheme does. Raises ConfigError for an operator that ONNX lacks."""
    scheme, batch = profile.chosen_scheme, profile.static_batch if profile.batch == "static" else None
    rounds_less = any("openvino" in need.name for need in profile.runtimes)
    module = computing_in_float16(twin) if scheme.half_arithmetic else exportable(twin, keep_rounding=rounds_less, float_bias=profile.accelerator == "TensorRT")
    model = to_onnx(module, contract.shape, opset=profile.opset, static_batch=batch)
    if rounds_less:
        model = with_own_zero_points(model)
    if scheme.kind == "weights-only" and profile.accelerator != "TensorRT":
        model = folded_at_load(model)
    if scheme.kind == "float16" and not scheme.half_arithmetic:
        model = stored_in_float16(model)
    return to_bytes(model)
