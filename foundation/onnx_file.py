"""A torch network as an ONNX model: clean, checked, the same bytes for the same network, and nothing in it about the machine that wrote it.

Nodes and values are called after the network's modules (`body.layer1.0.conv1`), so that a report, a runtime's listing and the twin speak of the same thing.
"""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.exporter_registry import kept_registry

INPUT_NAME = "input"
OUTPUT_NAME = "logits"

_PRODUCER = "kdpipe"
_SHORT = {"DequantizeLinear": "dq", "QuantizeLinear": "q"}  # names are a tenth of a small file


def to_onnx(module: nn.Module, sample_shape: Sequence[int], *, opset: int, static_batch: int | None) -> ModelProto:
    """`module` (in evaluation mode; (batch, *sample_shape) to (batch, classes)) as a checked ONNX model.

    `static_batch` None: the batch size is free. Raises ConfigError naming the operator and the module that ONNX has no counterpart for.
    """
    example = torch.zeros(2 if static_batch is None else static_batch, *sample_shape)
    program = _exported_program(module, example, dynamic=static_batch is None)
    model = _converted(program, opset)
    _name_after_modules_(model.graph)
    _strip_(model)
    for value in (model.graph.input[0], model.graph.output[0]):
        if static_batch is None:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    _check(model)
    return model


def to_bytes(model: ModelProto) -> bytes:
    """The model's file content; equal models give equal bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def read_onnx(content: bytes, *, at: str) -> ModelProto:
    """The model in a file's `content`, checked; VerificationError when it is damaged."""
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError is not public
        raise VerificationError(f"not an ONNX file: {error}", at=at, do="build the export stage again") from error
    _check(model, at=at)
    return model


def with_output(model: ModelProto, value: str) -> ModelProto:
    """A copy of `model` whose only output is its inner `value` (float32), of whatever shape."""
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    return result


def _exported_program(module: nn.Module, example: Tensor, *, dynamic: bool) -> torch.export.ExportedProgram:
    try:
        with _quiet_exporter():
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # a user's forward may raise anything when its values are symbolic
        raise ConfigError(
            f"the network cannot be exported: {_first_line(error)}",
            at=f"{type(module).__module__}.{type(module).__qualname__}",
            do="forward must not decide by the values of tensors or by the batch size",
        ) from error


def _converted(program: torch.export.ExportedProgram, opset: int) -> ModelProto:
    try:
        with _quiet_exporter(), kept_registry():
            converted = torch.onnx.export(program, dynamo=True, opset_version=opset, input_names=[INPUT_NAME], output_names=[OUTPUT_NAME], verbose=False)
    except Exception as error:
        text = "\n".join(str(each) for each in _causes(error))
        operator = re.search(r"OpOverload\(op='([^']+)'", text)
        if operator is None:
            raise
        raise ConfigError(
            f"the operator {operator[1]!r} has no counterpart in ONNX opset {opset}",
            at=_module_using(program, operator[1], text) or "the network",
            do="replace it by operations that ONNX has, or raise the profile's opset",
        ) from error
    assert converted is not None
    model: ModelProto = converted.model_proto
    return model


def _module_using(program: torch.export.ExportedProgram, operator: str, text: str) -> str | None:
    """The path of the module whose forward calls `operator`, or the node that the exporter's message names."""
    name = re.search(r"translating node %(\w+)", text)
    with _quiet_exporter():
        decomposed = program.run_decompositions()  # the exporter names what is left when composed operators are taken apart
    for node in (*program.graph.nodes, *decomposed.graph.nodes):
        if node.op == "call_function" and (str(node.target).startswith(operator) or (name is not None and node.name == name[1])):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            return stack[-1][0] if stack and stack[-1][0] else None
    return None


def _name_after_modules_(graph: GraphProto) -> None:
    """Rename nodes and the values they make: `<module>` for a module's last operation, `<module>/<operator>` for the others."""
    scopes = [_scope(node) for node in graph.node]
    last = {scope: position for position, scope in enumerate(scopes) if scope}
    taken = Counter([value.name for value in (*graph.input, *graph.output, *graph.initializer)])
    fixed = set(taken)
    renamed: dict[str, str] = {}
    for position, (node, scope) in enumerate(zip(graph.node, scopes, strict=True)):
        name = scope if last.get(scope) == position else f"{scope}/{_SHORT.get(node.op_type, node.op_type)}".lstrip("/")
        if node.op_type in _SHORT and node.input[0] in fixed and node.input[0] != INPUT_NAME:
            name = f"{node.input[0]}/{_SHORT[node.op_type]}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        for index, output in enumerate(node.output):
            if output and output not in fixed:
                renamed[output] = node.name if index == 0 else f"{node.name}:{index}"
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]


def _scope(node: NodeProto) -> str:
    names = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = re.findall(r"'([^']*)'", names)[:-1]  # the last one is the operation's own
    return modules[-1] if modules else ""


def _strip_(model: ModelProto) -> None:
    """Remove all that torch writes about the machine and the code: stack traces, module classes, shapes of inner values."""
    model.producer_name, model.producer_version, model.doc_string = _PRODUCER, "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "network", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    used = {value for node in graph.node for value in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    described: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output, *(a for node in graph.node for a in node.attribute)]
    for each in described:
        each.doc_string = ""
        if hasattr(each, "metadata_props"):
            del each.metadata_props[:]


def _check(model: ModelProto, at: str = "the exported model") -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference raise classes of their own extension modules
        raise VerificationError(
            f"not a valid ONNX model: {_first_line(error)}", at=at, do="build the export stage again; if it repeats, report it as a defect"
        ) from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks about torchvision, and a deprecation inside torch 2.13 itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    deepest = list(_causes(error))[-1]
    return f"{type(deepest).__name__}: {(str(deepest).strip().splitlines() or [''])[0]}"
