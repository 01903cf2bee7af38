"""OpenVINO IR beside the ONNX file: written, read back, and run against it on the CPU plug-in before it counts."""

from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import import_openvino
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.targets.runtimes.session import does_not_load

FILES = ("model.xml", "model.bin")
# Folding constants in another order moves float32 by its rounding, and a value at the edge between two int8 steps by one step.
TOLERANCE = 0.01  # largest difference, as a share of the spread of the logits


def write_ir(model: Path, folder: Path, example: Float32Array) -> tuple[Path, Path]:
    """`model.xml` and `model.bin` in `folder` from the ONNX file; they give the same logits on `example` (see TOLERANCE).

    Weights stay float32: the plug-in of the device chooses its own precision for what is not quantized. Raises
    VerificationError when OpenVINO cannot convert the file, or the IR's logits differ.
    """
    openvino = import_openvino()
    xml, weights = (folder / name for name in FILES)
    try:
        # Read as the plug-in reads the file itself: convert_model would merge a quantizer that stands there twice, and the IR would round elsewhere.
        openvino.save_model(openvino.Core().read_model(str(model)), str(xml), compress_to_fp16=False)
    except Exception as error:  # openvino raises RuntimeError and types of its native module
        raise does_not_load("openvino", model, error) from error
    with open_session("openvino", model) as original, open_session("openvino", xml) as converted:
        expected, got = original(example), converted(example)
    difference, allowed = float(np.abs(expected - got).max()), TOLERANCE * float(np.ptp(expected))
    if not difference <= allowed:  # also when it is NaN
        raise VerificationError(
            f"the IR gives other logits than the ONNX file (largest difference {difference:.3g}, allowed {allowed:.3g}, {len(example)} samples)",
            at=xml,
            do="report it with the ONNX file; until then use the ONNX file, which OpenVINO reads as well",
        )
    return xml, weights
