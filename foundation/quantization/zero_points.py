"""Quantizers that are written twice in a file (`exportable(keep_rounding=True)`) get zero points of their own.

The exporter stores equal constants once. Where two such quantizers share one zero point, OpenVINO takes the second pair of the later one for
superfluous, removes it, and leaves the rounding out as if it had been written once (docs/decisions/rounding-before-additions.md).
"""

from onnx import ModelProto, NodeProto, TensorProto


def with_own_zero_points(model: ModelProto) -> ModelProto:
    """A copy of `model` in which no two pairs that stand twice in a row share a zero point; equal to it where none stands so."""
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    makers = {value: node for node in graph.node for value in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    doubled = [node for node in graph.node if node.op_type == "QuantizeLinear" and _op_type(makers.get(node.input[0])) == "DequantizeLinear"]
    for second in doubled:
        pair = makers[second.input[0]]
        first = makers[pair.input[0]]
        after = [node for node in graph.node if second.output[0] in node.input]
        own = TensorProto()
        own.CopyFrom(constants[first.input[2]])
        own.name = f"{first.name}.zero_point"
        graph.initializer.append(own)
        for node in (first, pair, second, *after):
            node.input[2] = own.name
    if doubled:
        used = {value for node in graph.node for value in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    return result


def _op_type(node: NodeProto | None) -> str | None:
    return node.op_type if node is not None else None
