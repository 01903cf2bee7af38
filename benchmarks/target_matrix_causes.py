"""The causes part of `target_matrix.py`: what `explain` says of files that are not 1.3 times as fast as float, and the ratio without that cause."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from target_matrix_speed import STATIC, Files, changed_beside_float

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.explanation import why_not_faster
from kdpipe.targets.runtimes.runtime import open_session

FAST_ENOUGH = 1.3
WORTH_REMOVING = 0.05  # of the time; what accounts for less does not make a file slow
_TOLD = 3  # findings a case is told with
_SAME = 0.05  # of the logits' spread, on average: a changed file is the same network but for roundings, which layers left in float do elsewhere

_SCHEME_CAUSES = {"run-in-float", "leftover-quantizers", "split-activation", "residual-add", "float-operator", "layout"}
_SIZE_CAUSES = {"overhead", "small-layers", "threads"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """What the cases share: test images, the folder that keeps measurements, seconds of one, and the speed rows."""

    x: Float32Array
    folder: Path
    seconds: float
    rows: Sequence[Row]


def causes(network: str, files: Files, work: Work, *, wider: str | None = None) -> Iterator[dict[str, Any]]:
    """A case for each row of `network` whose int8 file is not fast enough, single stream.

    `wider`: the network with the same operators and more work in each.
    """
    for row in work.rows:
        if row["network"] != network or row["ratio"][0] * FAST_ENOUGH <= 1:
            continue
        explained = why_not_faster(row["runtime"], files.by_scheme[row["scheme"]], files.baseline(row["scheme"]), work.x[:16])
        weighty = [it for it in explained.findings if it.share is not None and it.share >= WORTH_REMOVING]
        told = [{"cause": it.cause, "share": it.share, "text": it.text, "remedy": it.remedy, "nodes": len(it.nodes)} for it in weighty[:_TOLD]]
        kinds = {str(it.cause) for it in weighty}
        without = [*_changed(row, files, kinds, work), *_elsewhere(row, wider, kinds, work.rows)]
        case = {key: row[key] for key in ("network", "runtime", "batch", "scheme", "ratio")}
        print(network, row["runtime"], row["scheme"], row["ratio"][0], sorted(kinds), [(it["change"], it["ratio"][0]) for it in without], flush=True)
        yield {**case, "findings": told, "without": without}


def _changed(row: Row, files: Files, kinds: set[str], work: Work) -> Iterator[dict[str, Any]]:
    """The same file with one thing changed, measured in turn with float, for each cause where that can be done."""
    if row["batch"] != 1:
        return
    own, baseline = files.by_scheme[row["scheme"]], files.baseline(row["scheme"])
    folder = work.folder / "without"
    folder.mkdir(exist_ok=True)
    if "signed-activation" in kinds:
        path = folder / f"{row['network']}-{row['scheme']}-unsigned.onnx"
        onnx.save(unsigned(onnx.load(own)), path)
        yield _measured("the same file, its int8 activations written as uint8 (each value 128 higher)", row, own, path, baseline, work)
    if "dynamic-shape" in kinds:
        path, other = folder / f"{row['network']}-{row['scheme']}-fixed.onnx", folder / f"{row['network']}-float-fixed.onnx"
        onnx.save(fixed(onnx.load(own)), path)
        onnx.save(fixed(onnx.load(baseline)), other)
        yield _measured("the same file with its batch fixed to 1, as the float file's", row, own, path, other, work)


def _measured(change: str, row: Row, own: Path, changed: Path, baseline: Path, work: Work) -> dict[str, Any]:
    x = work.x[:64]
    with open_session(row["runtime"], own) as before, open_session(row["runtime"], changed) as after:
        expected, logits = before(x).astype(np.float64), after(x)
    difference = float(np.abs(logits - expected).mean() / np.ptp(expected, axis=1).mean())
    if difference > _SAME:
        raise SystemExit(f"{changed.name} is another network than {own.name}: the logits differ by {100 * difference:.1f} % of their spread")
    ratio = changed_beside_float(changed.stem, row["runtime"], row["batch"], changed, baseline, work.x, work.folder, work.seconds)
    return {"change": change, "ratio": ratio, "difference": difference}


def _elsewhere(row: Row, wider: str | None, kinds: set[str], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Another row of the speed part that has not the cause, for each kind of cause that was found."""
    if kinds & _SIZE_CAUSES and row["batch"] == 1:
        yield from _found("in batches of 32: a sample pays a 32nd of what an inference costs", rows, {**_key(row), "batch": 32})
        if wider is not None:
            yield from _found(f"{wider}, untrained: the same operators, more work in each", rows, {**_key(row), "network": wider})
    if "split-activation" in kinds:
        yield from _found("zero point -128 behind a ReLU: the file of arm", rows, {**_key(row), "scheme": "arm"})
    if kinds & _SCHEME_CAUSES and row["scheme"] in STATIC:
        yield from _found("unsigned activations, as x86 kernels take them, lowest zero point: the file of cpu-vnni", rows, {**_key(row), "scheme": "cpu-vnni"})
    if "slow-kernel" in kinds or "memory-bound" in kinds:
        other = "openvino" if row["runtime"] == "onnxruntime" else "onnxruntime"
        yield from _found(f"the same file with the kernels of {other}", rows, {**_key(row), "runtime": other})


def _key(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in ("network", "runtime", "batch", "scheme")}


def _found(change: str, rows: Sequence[Row], key: Row) -> Iterator[dict[str, Any]]:
    for row in rows:
        if all(row[name] == value for name, value in key.items()):
            yield {"change": change, "ratio": row["ratio"]}


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with each int8 activation as uint8 and its zero point 128 higher: the same scales, steps and results. Changes its argument."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {node.output[0]: it.t for node in model.graph.node if node.op_type == "Constant" for it in node.attribute if it.name == "value"}
    for node in model.graph.node:
        zero = constants.get(node.input[2]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8 or node.input[0] in constants:
            continue  # weights stay int8
        values = numpy_helper.to_array(zero).astype(np.int16) + 128
        name = f"{node.name or node.output[0]}/unsigned_zero"  # its own: the old one may be shared with a weight's
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.uint8), name))
        node.input[2] = name
    del model.graph.value_info[:]  # it has the old types
    onnx.checker.check_model(model)
    return model


def fixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network for one sample at a time. Changes its argument."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]).tensor_type.shape.dim[0])
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model
