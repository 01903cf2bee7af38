"""The parity ladder: from the float network to the file in its runtime, every rung measured on the same samples.

network (float) → twin → ONNX reference evaluation → each runtime of the target on this host

A rung is held when the labels differ no more often than chance allows for a pair that agrees on 99.5 % of all samples, and the logits
are close. When one breaks, the values inside the file are compared with the twin's until the first node that differs is found.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.version_converter import convert_version
from pydantic import BaseModel, Field
from torch import Tensor, nn

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.onnx_file import INPUT_NAME, OUTPUT_NAME, read_onnx, to_bytes, with_output
from kdpipe.foundation.predictor import Float32Array, TorchPredictor
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, InputQuantizer
from kdpipe.foundation.quantization.layers import FrozenFloatLayer, FrozenLayer
from kdpipe.stages.left_out_roundings import left_out_roundings
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.profile import Profile
from kdpipe.targets.runtimes.runtime import open_session

PARITY_FILE = "parity.json"
REQUIRED_AGREEMENT = 0.995
"""Share of samples that get the same label on both sides of a rung."""

RISK = 0.001
"""Chance that a file which agrees exactly as often as required is refused because of the samples that were drawn."""

MEAN_TOLERANCE = 0.02
"""Mean difference of logits, as a share of the mean spread (largest minus smallest logit of a sample): values at the edge between two
integers fall to either side by the last bit of a float sum, in every layer anew. Measured: up to 0.03 % in ONNX Runtime and in OpenVINO; up to 0.8 %
in OpenVINO with files that do not keep the rounding before additions (`foundation/quantization/qdq.py`)."""

NEAR_TIE = MEAN_TOLERANCE
"""Share of the spread within which a sample's two largest logits lie so close that a difference which the ladder allows may swap them."""

FLOAT_TOLERANCE = 0.001
"""The same for float files: another order of sums."""

_NODE_TOLERANCE = 0.03  # of a node's mean magnitude; flips of single integers stay below 1 %
_REFERENCE_OPSET = 19  # the lowest for which onnx.reference has DequantizeLinear
_REFERENCE_SAMPLES = 16  # the reference evaluator takes about 0.1 s a sample and layer


class Rung(BaseModel, extra="forbid", frozen=True):
    """One step of the ladder. `passed` None: measured and not judged, `note` says why."""

    name: str = Field(description="'twin → onnxruntime 1.32.0 CPU'")
    file: str | None = Field(None, description="the file on the right-hand side")
    n: int
    agreement: float = Field(ge=0, le=1, description="share of samples with the same label on both sides")
    disagreements: int
    allowed: int | None = Field(description="disagreements that chance allows at the required agreement; None where not judged")
    largest_difference: float | None = Field(description="of the logits; None where one is not finite")
    mean_difference: float | None
    spread: float = Field(description="mean over samples of largest minus smallest logit, left-hand side")
    near_ties: int | None = Field(None, ge=0, description="of the disagreements: the left-hand side's two largest logits lie within 2 % of the spread")
    accuracy_before: float = Field(ge=0, le=1)
    accuracy_after: float = Field(ge=0, le=1)
    passed: bool | None
    note: str | None = None
    diverges_at: str | None = Field(None, description="the first node of the file whose output diverges, where the rung broke")


class Parity(BaseModel, extra="forbid", frozen=True):
    """`parity.json`."""

    required_agreement: float = REQUIRED_AGREEMENT
    split: str = "validation"
    rungs: tuple[Rung, ...]

    @property
    def broken(self) -> tuple[Rung, ...]:
        """The rungs that did not hold."""
        return tuple(rung for rung in self.rungs if rung.passed is False)


@dataclass(frozen=True)
class Networks:
    """The torch networks behind the files of an export folder. `unscaled`: the twin before its logits were divided by `temperature`, where they were."""

    teacher: nn.Module
    student: nn.Module
    calibrated: nn.Module
    twin: nn.Module
    unscaled: nn.Module | None = None
    temperature: float = 1.0


def climb(folder: Path, networks: Networks, x: Float32Array, labels: NDArray[np.int64], profile: Profile) -> Parity:
    """All rungs of the files in `folder` on the samples `x`, (n, *shape), with their `labels`; nothing is raised for a broken one."""
    student, twin = TorchPredictor(networks.student)(x), TorchPredictor(networks.twin)(x)
    model = read_onnx((folder / "model.onnx").read_bytes(), at=str(folder / "model.onnx"))
    rungs = [compared("network → twin", student, twin, labels, tolerance=None, note="the effect of quantization and fine-tuning: budgets judge it, not parity")]
    if networks.unscaled is not None:
        divided = TorchPredictor(networks.unscaled)(x) / np.float32(networks.temperature)
        rungs.append(compared(f"twin → twin at temperature {networks.temperature:.3g}", divided, twin, labels, tolerance=FLOAT_TOLERANCE))
    few = slice(0, _REFERENCE_SAMPLES)
    reference = compared("twin → ONNX reference", twin[few], _reference(model, x[few]), labels[few], tolerance=MEAN_TOLERANCE, file="model.onnx")
    rungs.append(_located(reference, model, networks.twin, x[few], partial(_reference, model, x[few])))
    saturates = None if profile.exact_on(probe()) else "this CPU adds two products in 16 bits, which may saturate with the file's scheme: not judged here"
    for need in profile.runtimes:
        file = "model.xml" if need.name == "openvino" and (folder / "model.xml").is_file() else "model.onnx"
        with open_session(need.name, folder / file, versions=need.versions) as session:
            found = session(x)
            rung = compared(f"twin → {session.name}", twin, found, labels, tolerance=None if saturates else MEAN_TOLERANCE, note=saturates, file=file)
        rungs.append(_located(rung, model, networks.twin, x[few], partial(_in_runtime, need.name, model, x[few]), found[few]))
    runtime = profile.runtimes[0].name
    for name, network, tolerance in (
        ("teacher", networks.teacher, FLOAT_TOLERANCE),
        ("float", networks.student, FLOAT_TOLERANCE),
        ("ptq", networks.calibrated, None if saturates else MEAN_TOLERANCE),
    ):
        with open_session(runtime, folder / f"{name}.onnx") as session:
            rungs.append(compared(f"{name} network → {session.name}", TorchPredictor(network)(x), session(x), labels, tolerance=tolerance, file=f"{name}.onnx"))
    return Parity(rungs=tuple(rungs))


def require_parity(parity: Parity, folder: Path) -> None:
    """VerificationError for the first broken rung: how far apart, and at which node it begins."""
    for rung in parity.broken:
        logits = (
            "not all logits are finite" if rung.mean_difference is None else f"logits by {rung.mean_difference / max(rung.spread, 1e-12):.2%} of their spread"
        )
        ties = f", {rung.near_ties} of them near-ties" if rung.near_ties else ""
        where = f"; the first node whose output diverges: {rung.diverges_at!r}" if rung.diverges_at else f"; {rung.note}" if rung.note else ""
        raise VerificationError(
            f"{rung.name}: {rung.disagreements} of {rung.n} labels differ (allowed: {rung.allowed}{ties}), {logits}{where}",
            at=folder / (rung.file or "model.onnx"),
            do="the file is not what was trained: build again; if it repeats, report it with parity.json, or choose another scheme in the target's profile",
        )


def compared(
    name: str,
    before: Float32Array,
    after: Float32Array,
    labels: NDArray[np.int64],
    *,
    tolerance: float | None,
    file: str | None = None,
    note: str | None = None,
) -> Rung:
    """One rung from the logits on both sides, (n, classes). `tolerance`: of the mean difference, as a share of the spread; None: not judged."""
    n = len(labels)
    differ = before.argmax(1) != after.argmax(1)
    disagreements = int(differ.sum())
    difference = np.abs(before.astype(np.float64) - after)
    spread = float(np.ptp(before, axis=1).mean())
    allowed = None if tolerance is None else allowed_disagreements(n)
    finite = bool(np.isfinite(difference).all())
    close = tolerance is not None and finite and float(difference.mean()) <= tolerance * spread
    return Rung(
        name=name,
        file=file,
        n=n,
        agreement=1 - disagreements / n,
        disagreements=disagreements,
        allowed=allowed,
        largest_difference=float(difference.max()) if finite else None,
        mean_difference=float(difference.mean()) if finite else None,
        spread=spread,
        near_ties=int((differ & (_margins(before) <= NEAR_TIE * spread)).sum()),
        accuracy_before=float((before.argmax(1) == labels).mean()),
        accuracy_after=float((after.argmax(1) == labels).mean()),
        passed=None if allowed is None else disagreements <= allowed and close,
        note=note,
    )


def _margins(logits: Float32Array) -> NDArray[np.float32]:
    """The largest logit of each sample minus the second largest."""
    second, first = np.sort(logits, axis=1)[:, -2:].T
    margins: NDArray[np.float32] = first - second
    return margins


def allowed_disagreements(n: int, agreement: float = REQUIRED_AGREEMENT, risk: float = RISK) -> int:
    """The smallest k such that more than k of `n` samples differ with a chance of at most `risk` when each differs with 1 - `agreement`."""
    rate = 1 - agreement
    tail = 1.0
    for k in range(n + 1):
        tail -= math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(rate) + (n - k) * math.log(agreement))
        if tail <= risk:
            return k
    return n


def first_divergence(model: ModelProto, twin: nn.Module, x: Float32Array, value_in_file: Callable[[str], Float32Array]) -> str | None:
    """The name of the first node, in the twin's order, whose output is not the twin's; None where each of them agrees for itself."""
    made = {node.name: node.output[0] for node in model.graph.node}
    for name, expected in _inner_values(twin, x):
        if name not in made:
            continue
        magnitude = float(np.abs(expected).mean())
        found = value_in_file(made[name])
        if found.shape != expected.shape or not float(np.abs(found - expected).mean()) <= _NODE_TOLERANCE * max(magnitude, 1e-6):
            return name
    return None


def _located(
    rung: Rung,
    model: ModelProto,
    twin: nn.Module,
    x: Float32Array,
    value_in_file: Callable[[str], Float32Array],
    found: Float32Array | None = None,
) -> Rung:
    """A broken rung with what can be said of the reason. `found`: the runtime's logits for `x`; its own merging is looked at before the nodes are."""
    if rung.passed is not False:
        return rung
    roundings = () if found is None else left_out_roundings(twin, x, found)
    if roundings:
        return rung.model_copy(update={"note": f"the runtime leaves out the rounding before additions that it merges, of {', '.join(roundings)}"})
    name = first_divergence(model, twin, x, value_in_file)
    if name is None:
        return rung.model_copy(update={"note": "each node agrees when its output is asked for: the difference comes from what the runtime merges"})
    return rung.model_copy(update={"diverges_at": name})


def _inner_values(twin: nn.Module, x: Float32Array) -> Iterator[tuple[str, Float32Array]]:
    """Outputs of the twin's layers and quantizers, in the order of computation."""
    values: dict[str, Float32Array] = {}
    handles = []
    for name, module in twin.named_modules():
        if isinstance(module, FrozenLayer | FrozenFloatLayer | ActivationQuantizer | InputQuantizer):

            def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                values[name] = output.detach().numpy()

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            TorchPredictor(twin)(x)
    finally:
        for handle in handles:
            handle.remove()
    return iter(values.items())


def _reference(model: ModelProto, x: Float32Array, value: str = OUTPUT_NAME) -> Float32Array:
    """The value in ONNX's own reference implementation; a static file gets the samples piece by piece."""
    asked = model if value == OUTPUT_NAME else with_output(model, value)
    if next(entry.version for entry in model.opset_import if not entry.domain) < _REFERENCE_OPSET:
        asked = convert_version(asked, _REFERENCE_OPSET)
    evaluator = ReferenceEvaluator(asked)
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    size = first.dim_value if first.HasField("dim_value") else len(x)
    pieces = [_padded(x[start : start + size], size) for start in range(0, len(x), size)]
    return np.concatenate([evaluator.run([value], {INPUT_NAME: piece})[0] for piece in pieces])[: len(x)]


def _in_runtime(runtime: str, model: ModelProto, x: Float32Array, value: str) -> Float32Array:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(to_bytes(with_output(model, value)))
        with open_session(runtime, path) as session:
            return session(x)


def _padded(piece: Float32Array, size: int) -> Float32Array:
    return np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
