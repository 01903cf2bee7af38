"""Rules on the quantization of activations: type, zero point, number and value of the scales."""

from typing import Any

import numpy as np

from kdpipe.targets.lint.finding import Findings, found
from kdpipe.targets.lint.graph import Graph, attribute
from kdpipe.targets.profile import Profile


def activations(graph: Graph, profile: Profile) -> Findings:
    """What each quantizer of an activation has against the scheme."""
    scheme, npu = profile.chosen_scheme, profile.device_class == "intel-npu"
    wanted = np.dtype(np.int8 if scheme.activation_signed else np.uint8)
    for node in graph.quantizers():
        name = graph.name(node)
        scale, zero_point = graph.parameters(node)
        if scale is None or zero_point is None:
            yield found("dynamic-scale", profile, name, "scale or zero point is computed at run time", "use static quantization")
            continue
        # The NPU takes u8 and i8 alike (NNCF's set-up for it leaves the sign open).
        if zero_point.dtype != wanted and not (npu and zero_point.dtype in (np.int8, np.uint8)):
            reason = f"activations are {zero_point.dtype}, the target's scheme has {wanted}"
            yield found("activation-type", profile, name, reason, f"quantize activations to {wanted}")
        elif scheme.activation_symmetric and not np.isin(zero_point, [0] if scheme.activation_signed else [0, 128]).all():
            reason = f"the zero point is {zero_point.ravel()[0]}, the target takes symmetric activations only"
            yield found("zero-point", profile, name, reason, "quantize activations symmetrically, zero point 0")
        if scale.size > 1 and not (npu and _feeds_depthwise_alone(graph, node)):
            reason = f"activations have {scale.size} scales"
            yield found("activation-granularity", profile, name, reason, "use one scale per tensor: per-channel activations do not fuse")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            bad = scale.ravel()[~(np.isfinite(scale) & (scale > 0)).ravel()][0]
            yield found("scale", profile, name, f"the scale is {bad}", "calibrate again: it must be finite and above 0")


def _feeds_depthwise_alone(graph: Graph, quantizer: Any) -> bool:
    """Whether only depthwise convolutions take the values: before those the NPU has a scale a channel (NNCF's set-up for it)."""
    values = [node.output[0] for node in graph.users.get(quantizer.output[0], [])]
    users = [user for value in values for user in graph.users.get(value, [])]
    return bool(users) and all(user.op_type == "Conv" and (attribute(user, "group") or 1) > 1 for user in users)
