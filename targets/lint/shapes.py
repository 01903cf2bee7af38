"""Rules on the file as a whole and its shapes: opset, number types, what must be fixed, what must be free, and whether anything is quantized."""

import onnx

from kdpipe.targets.lint.finding import Findings, found
from kdpipe.targets.lint.graph import OWN_DOMAINS, Graph, sides_of
from kdpipe.targets.lint.operators import is_operator_format
from kdpipe.targets.profile import Profile

_QUANTIZES = {"QuantizeLinear", "DequantizeLinear"}


def opset(graph: Graph, profile: Profile) -> Findings:
    """The file's opset against the target's range."""
    low, high = profile.opset_range
    if not low <= graph.opset <= high:
        finding = found(
            "opset", profile, "file", f"opset {graph.opset} is not in [{low}, {high}]", f"export at opset {profile.opset}, or use onnx.version_converter"
        )
        # A runtime on a CPU says itself what it reads, and is asked; below the range, quantization per channel does not exist.
        yield finding.model_copy(update={"severity": "warning" if graph.opset > high and profile.accelerator == "CPU" else "error"})


def is_quantized(graphs: list[Graph]) -> bool:
    """Whether any node of the file quantizes or computes on integers."""
    return any(node.op_type in _QUANTIZES or is_operator_format(node) for graph in graphs for node in graph.nodes)


def content(graphs: list[Graph], profile: Profile) -> Findings:
    """A file that computes nothing, or nothing in integers."""
    if not any(graph.nodes for graph in graphs):
        yield found("no-nodes", profile, "file", "the graph has no node: its outputs are its inputs", "export the network itself")
    elif not is_quantized(graphs) and profile.chosen_scheme.kind is None:
        layers = sum(1 for graph in graphs for _ in graph.weighted())
        reason = f"the file is float: nothing in it is quantized (convolutions and linear layers: {layers})"
        yield found(
            "float-file",
            profile,
            "file",
            reason,
            "it runs as it is; kdpipe build makes an int8 file, onnxruntime.quantization.quantize_static one without training",
        )


def doubles(graph: Graph, profile: Profile) -> Findings:
    """Values of 64 bits: inputs, outputs and constants."""
    wide = onnx.TensorProto.DOUBLE
    declared = [value.name for value in (*graph.body.input, *graph.body.output) if value.type.tensor_type.elem_type == wide]
    names = list(dict.fromkeys([*declared, *(name for name, tensor in graph.constants.items() if tensor.data_type == wide)]))
    if names:
        shown = ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield found("float64", profile, graph.within.rstrip("/") or "file", f"float64: {shown}", "export in float32")


def shapes(graph: Graph, profile: Profile) -> Findings:
    """What the profile wants fixed is fixed, what it wants free is free."""
    for value in graph.body.input:
        if value.name in graph.constants or graph.within:
            continue
        sides = sides_of(value)
        first = sides[0] if sides else None
        if profile.batch == "dynamic" and first is not None:
            yield found("dynamic-batch", profile, "file", f"the batch of input {value.name!r} is fixed to {first}", "export with a dynamic batch")
        if profile.batch == "static" and (sides is None or None in sides or (first != profile.static_batch)):
            shown = "unknown" if sides is None else [side if side is not None else "any" for side in sides]
            reason = f"input {value.name!r} has shape {shown}, every side must be fixed and the batch {profile.static_batch}"
            yield found("static-shape", profile, "file", reason, f"export with a static batch of {profile.static_batch}")
            return  # what follows from a free input is not repeated for every node
    if profile.batch == "static":
        yield from _free_inside(graph, profile)


def _free_inside(graph: Graph, profile: Profile) -> Findings:
    if graph.within or any(node.domain not in OWN_DOMAINS or is_operator_format(node) for node in graph.nodes):
        return  # ONNX knows no shapes behind a runtime's own operators, which are named already; those within a body follow from those around it
    inferred = onnx.shape_inference.infer_shapes(graph.model, data_prop=True).graph
    known = {value.name: sides_of(value) for value in (*inferred.value_info, *inferred.output)}
    for node in graph.nodes:
        for value in filter(None, node.output):
            sides = known.get(value) if value not in graph.constants else ()
            if sides is None or None in sides:
                reason = f"the shape of its output {value!r} is not fixed"
                yield found("static-shape", profile, graph.name(node), reason, "compute shapes in the exporter, from constants")
                break
