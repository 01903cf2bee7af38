"""Files whose arithmetic is float and whose weights are small: what stands in the file, and what the runtimes make of it when they load it.

`weights-only`: int8 weights, read back by `Cast` and `Mul`, which every runtime computes once, at load. As `DequantizeLinear`, which says the same, ONNX
Runtime 1.32 computes them in each inference anew (1.9 to 2.2 times float's time, docs/decisions/further-schemes.md), so that form is kept for TensorRT alone,
which takes no other.
`float16`: weights stored in float16 and widened by `Cast`, at load too. Where the scheme says that the chip computes in float16, the whole network does,
between a `Cast` of the float32 input and one to float32 logits.
"""

import copy

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from kdpipe.foundation.normalize import Normalize
from kdpipe.foundation.quantization.layers import FrozenFloatLayer
from kdpipe.foundation.quantization.tracing import module_of

_LAYERS = {"Conv", "Gemm", "MatMul"}
_KEPT = 128  # a weight of fewer elements saves less than its Cast costs


def folded_at_load(model: ModelProto) -> ModelProto:
    """A copy of `model` that reads each int8 weight by `Cast` and `Mul` with its scale instead of by `DequantizeLinear`: the same values, bit for bit."""
    result = ModelProto()
    result.CopyFrom(model)
    constants = {constant.name: constant for constant in result.graph.initializer}
    kept: list[NodeProto] = []
    for node in result.graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != TensorProto.INT8:
            kept.append(node)
            continue
        scale = constants[node.input[1]]
        shape = (-1, *(1,) * (len(weight.dims) - 1)) if scale.dims else ()
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale).reshape(shape), scale.name))
        integers = f"{node.name}/int"
        kept += [
            helper.make_node("Cast", [node.input[0]], [integers], name=integers, to=TensorProto.FLOAT),
            helper.make_node("Mul", [integers, node.input[1]], list(node.output), name=node.name),
        ]
    _replace(result, kept)
    return result


def stored_in_float16(model: ModelProto) -> ModelProto:
    """A copy of `model` whose layers' weights stand in float16 behind a `Cast`, where float16 holds each of their values exactly."""
    result = ModelProto()
    result.CopyFrom(model)
    constants = {constant.name: constant for constant in result.graph.initializer}
    kept: list[NodeProto] = []
    widened: set[str] = set()
    for node in result.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in _LAYERS else None
        if weight is not None and (weight.name in widened or _narrows(weight)):
            name = weight.name
            wide = f"{name}/float32"
            if name not in widened:
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), name))
                kept.append(helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT))
                widened.add(name)
            node.input[1] = wide
        kept.append(node)
    _replace(result, kept)
    return result


def computing_in_float16(twin: nn.Module) -> nn.Module:
    """A copy of the frozen `twin` that computes in float16 between its normalisation and its logits, but for layers that are kept in float32."""
    result = copy.deepcopy(twin)
    assert isinstance(result, fx.GraphModule)
    inputs = [node for node in result.graph.nodes if isinstance(module_of(node, result), Normalize)]
    inputs += [node for node in result.graph.nodes if node.op == "placeholder" and any(user not in inputs for user in node.users)]
    for name, module in list(result.named_modules()):
        if isinstance(module, FrozenFloatLayer) and module.kept_float:
            result.set_submodule(name, _InFloat32(module))
    result.half()
    for module in result.modules():
        if isinstance(module, Normalize | _InFloat32):
            module.float()
    result.add_module("narrow", _Cast(torch.float16))
    result.add_module("widen", _Cast(torch.float32))
    for node in inputs:
        users = [user for user in node.users if user not in inputs]
        with result.graph.inserting_after(node):
            narrowed = result.graph.call_module("narrow", (node,))
        for user in users:
            user.replace_input_with(node, narrowed)
    output = next(node for node in result.graph.nodes if node.op == "output")
    with result.graph.inserting_before(output):
        output.args = (result.graph.call_module("widen", (output.args[0],)),)
    result.recompile()
    return result.eval()


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """`x` in another type."""
        return x.to(self.dtype)


class _InFloat32(nn.Module):
    """A layer that computes in float32 amid float16."""

    def __init__(self, layer: FrozenFloatLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """float16 to float16."""
        result: Tensor = self.layer(x.float()).half()
        return result


def _narrows(weight: TensorProto) -> bool:
    if weight.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(weight)
    return values.size >= _KEPT and bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _replace(model: ModelProto, nodes: list[NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    used = {value for node in copies for value in node.input}
    constants = [constant for constant in model.graph.initializer if constant.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
