"""The twin as the file that ships, beside it the files that it is compared with; nothing counts before the parity ladder is climbed.

Where it is asked for, the logits of the file that ships are divided by a temperature (`stages/temperature.py`), those of the others are not.

`model.onnx` int8 · `ptq.onnx` the same network, calibrated only · `float.onnx` the student · `teacher.onnx` · for OpenVINO targets `model.xml`, `model.bin` ·
`contract.json` what goes in and comes out, the temperature · `lint.json` what the target's rules say · `parity.json`.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from torch import nn

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.foundation.networks import InputContract, load_network
from kdpipe.foundation.onnx_file import INPUT_NAME, OUTPUT_NAME, to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import float_layers_of
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.stages.parity import PARITY_FILE, Networks, climb, require_parity
from kdpipe.stages.qat import PTQ_FOLDER
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.temperature import Temperature, fitted, scaled
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.lint import LintFinding, lint
from kdpipe.targets.openvino_ir import write_ir
from kdpipe.targets.profile import Profile
from kdpipe.tasks.data.splits import Split

VERSION = 3
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")

CONTRACT_FILE = "contract.json"
LINT_FILE = "lint.json"
TEMPERATURE_KEY = "temperature"

_OF_FLOAT_LAYERS = {"not-quantized", "weight-kind"}
"""Rules that a layer breaks because it is to stay in float."""

_IR_EXAMPLES = 8
_BATCH = 256


class ExportConfig(BaseModel, extra="forbid", frozen=True):
    """`[export]`."""

    parity_samples: int = Field(1000, ge=1, description="validation samples on which the file is compared with its twin")
    temperature_scaling: bool | None = Field(
        None, description="true: divide the logits of the int8 file by a temperature fitted on validation, for confidence that means what it says"
    )


def run(inputs: Inputs, config: ExportConfig, context: Context) -> Path:
    """The artifact folder with all files, verified. Raises ConfigError (an operator that ONNX lacks), VerificationError (parity, target's rules)."""
    profile = inputs.profile
    assert profile is not None, "export is a step of a target"
    qat = load_network(inputs.artifacts["qat"])
    networks = Networks(
        teacher=load_network(inputs.artifacts["teacher"]).module,
        student=load_network(inputs.artifacts["prune"]).module,
        calibrated=load_network(inputs.artifacts["qat"] / PTQ_FOLDER).module,
        twin=qat.module,
    )
    temperature = _temperature(networks.twin, inputs.data.validation) if config.temperature_scaling else None
    if temperature is not None:
        context.progress.say(temperature.told)
        networks = replace(networks, twin=scaled(qat.module, temperature.value), unscaled=qat.module, temperature=temperature.value)
    contract = qat.spec.contract
    write_bytes(context.folder / "model.onnx", twin_file(networks.twin, contract, profile))
    told = {} if temperature is None else {TEMPERATURE_KEY: temperature.model_dump(mode="json")}
    write_json(context.folder / CONTRACT_FILE, {**contract_of(contract, profile), **told})
    _check_rules(context, profile, float_layers_of(networks.twin))
    for name, module in (("teacher", networks.teacher), ("float", networks.student)):
        write_bytes(context.folder / f"{name}.onnx", _as_onnx(module, contract, profile))
    write_bytes(context.folder / "ptq.onnx", twin_file(networks.calibrated, contract, profile))
    split = inputs.data.validation
    chosen = numpy_stream(context.seed, "export/parity").permutation(len(split))[: config.parity_samples].astype(np.int64)
    x = split.read(chosen)
    if "openvino-ir" in profile.formats:
        write_ir(context.folder / "model.onnx", context.folder, x[:_IR_EXAMPLES])
    parity = climb(context.folder, networks, x, split.labels[chosen], profile)
    write_json(context.folder / PARITY_FILE, parity.model_dump(mode="json"))
    require_parity(parity, context.folder)
    for rung in parity.rungs:
        context.progress.say(f"{rung.name}: {rung.n - rung.disagreements} of {rung.n} labels equal" + (f" ({rung.note})" if rung.note else ""))
    return context.folder


def contract_of(contract: InputContract, profile: Profile) -> dict[str, Any]:
    """`contract.json`: all that whoever calls the file must know. A free batch size is the word "batch"."""
    batch: int | str = profile.static_batch if profile.batch == "static" else "batch"
    return {
        "inputs": [{"name": INPUT_NAME, "shape": [batch, *contract.shape], "type": "float32", "low": contract.low, "high": contract.high}],
        "outputs": [{"name": OUTPUT_NAME, "shape": [batch, len(contract.labels)], "type": "float32"}],
        "labels": list(contract.labels),
    }


def temperature_of(export: Path) -> float | None:
    """What the logits of the int8 file in this folder were divided by; None where that was not asked for."""
    found = json.loads((export / CONTRACT_FILE).read_bytes()).get(TEMPERATURE_KEY)
    return None if found is None else Temperature.model_validate(found).value


def _temperature(twin: nn.Module, split: Split) -> Temperature:
    predictor = TorchPredictor(twin)
    logits = [predictor(split.read(np.arange(begin, min(begin + _BATCH, len(split))))) for begin in range(0, len(split), _BATCH)]
    return fitted(np.concatenate(logits), split.labels)


def _as_onnx(module: nn.Module, contract: InputContract, profile: Profile) -> bytes:
    return to_bytes(to_onnx(module, contract.shape, opset=profile.opset, static_batch=profile.static_batch if profile.batch == "static" else None))


def _check_rules(context: Context, profile: Profile, float_layers: Collection[str]) -> None:
    """Write what the target's rules say about the file; stop where it would not run there. That `float_layers` are float is no news."""
    path = context.folder / "model.onnx"
    findings = [finding for finding in lint(path, profile) if finding.node not in float_layers or finding.rule not in _OF_FLOAT_LAYERS]
    write_json(context.folder / LINT_FILE, {"profile": profile.name, "findings": [finding.model_dump(mode="json") for finding in findings]})
    refused = [finding for finding in findings if finding.severity == "error"]
    if refused:
        raise VerificationError(f"the target {profile.name!r} does not take the file: {_told(refused)}", at=path, do=refused[0].remedy)
    if findings:
        context.progress.say(f"not as good as it could be: {_told(findings)}")


def _told(findings: list[LintFinding] | tuple[LintFinding, ...]) -> str:
    more = f" and {len(findings) - 1} more, see {LINT_FILE}" if len(findings) > 1 else ""
    return f"{findings[0].node}: {findings[0].reason}{more}"
