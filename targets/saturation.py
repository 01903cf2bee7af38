"""A file that tells whether a runtime adds int8 products in 16 bits on the machine that it runs on.

One linear layer with the largest values of full 8-bit weights: two products are 2 · 255 · 127 = 64 770, which 16 bits do not hold. A CPU's list of
features says what its makers promise; this says what the runtime made of it, also under an emulator.
"""

from functools import cache

INPUTS = 64
"""as many as a kernel takes at once on any CPU"""

OUTPUTS = 32
SHAPE = (4, INPUTS)
ANSWER = float(INPUTS)
"""each output, where nothing saturates: for ones, the sum over the inputs of 1 × 1"""

_OPSET, _IR_VERSION = 19, 9


@cache
def saturation_model() -> bytes:
    """The ONNX file: float32 (4, 64) ones to (4, 32), quantized as kdpipe quantizes a linear layer for x86."""
    import numpy as np
    import onnx  # not needed by those who only read the answer
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "x_scale": np.float32(1 / 255),
        "x_zero": np.uint8(0),
        "w": np.full((INPUTS, OUTPUTS), 127, np.int8),
        "w_scale": np.float32(1 / 127),
        "w_zero": np.int8(0),
        "y_scale": np.float32(INPUTS / 255),
        "y_zero": np.uint8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "y_scale", "y_zero"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "y_scale", "y_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (SHAPE[0], OUTPUTS))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="kdpipe")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
