"""Part `mixed` of `schemes.py`: `[qat] keep_float = "auto"` on networks that integers hurt, and on those that they do not hurt.

Calibrated only: a search after fine-tuning has less to find. Layers are chosen on validation; the figures are of the test split, in both runtimes.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from schemes_files import RUNTIMES, WORK, Printing, as_float, changed, figures, post_training, ratios, trained

from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.foundation.networks import Network, build_network, load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.randomness import stream
from kdpipe.stages import qat, teacher
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.teacher import TeacherConfig
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.image_classification import ImageClassification

Maker = Callable[[ImageClassification, DataSplits], Network]


@dataclass(frozen=True)
class Case:
    """A network on its data, quantized for `cpu` with `scheme` changed. `limit`: points below float on validation, upper 95 % bound."""

    name: str
    data: str
    limit: float
    network: Maker
    scheme: Mapping[str, Any] = field(default_factory=dict)


def digits_resnet(task: ImageClassification, data: DataSplits) -> Network:
    """`resnet-8`, trained plainly."""
    return trained("digits", "resnet-8", task, data, epochs=15)


def digits_outlier(task: ImageClassification, data: DataSplits) -> Network:
    """The same function with one channel 3,000 times as large."""
    return with_outlier(digits_resnet(task, data), "body.layer2.0", 3000)


def digits_mobile(task: ImageClassification, data: DataSplits) -> Network:
    """`mobilenetv2-0.1`, trained plainly."""
    return trained("digits", "mobilenetv2-0.1", task, data, epochs=40)


def cifar_resnet(task: ImageClassification, data: DataSplits) -> Network:
    """The published ResNet-20, as it is."""
    folder = WORK / "cifar10-resnet-20"
    if not (folder / "network.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(os.environ["KDPIPE_DATA"]) / "pretrained" / "cifar10-resnet20.safetensors", WORK / "resnet20.safetensors")
        given = TeacherConfig(
            network="resnet-20", network_arguments={"shortcut": "pad"}, weights="resnet20.safetensors", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        teacher.run(Inputs({}, data, task), given, Context(folder=folder, project=WORK, seed=0, threads=1, progress=Printing()))
    return load_network(folder)


CASES = (
    Case("resnet-8, one channel 3,000 times as large", "digits", 3.0, digits_outlier),  # 179 digits that are all answered alike show 1.5 points
    Case("mobilenetv2-0.1, 4-bit weights", "digits", 3.0, digits_mobile, {"weight_bits": 4}),
    Case("resnet-8", "digits", 3.0, digits_resnet),
    Case("mobilenetv2-0.1", "digits", 3.0, digits_mobile),
    Case("resnet-20", "cifar10", 1.0, cifar_resnet),
    Case("resnet-20, 4-bit weights", "cifar10", 1.0, cifar_resnet, {"weight_bits": 4}),
)


def mixed(save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every case; `save` takes those that are finished."""
    done: dict[str, Any] = {}
    for case in CASES:
        task, data = loaded(case.data)
        kept = WORK / f"{folder_name(case.name)}.json"
        if not kept.is_file():
            write_json(kept, searched(case, task, data))
        told = {"data": case.data, "limit": case.limit, "validation": len(data.validation)}
        done[case.name] = {**told, **json.loads(kept.read_text())}
        save({"cases": done})
    return {"cases": done}


@cache
def loaded(name: str) -> tuple[ImageClassification, DataSplits]:
    """The task, without augmentation, and its splits."""
    task = ImageClassification(data=name, augment=())
    return task, task.load(WORK, 0)


def searched(case: Case, task: ImageClassification, data: DataSplits) -> dict[str, Any]:
    """The search, and the test accuracy of float, of the plain file and of the mixed one in each runtime."""
    print(case.name, flush=True)
    network, profile = case.network(task, data), changed(load_profile("cpu", at="benchmark"), **case.scheme)
    folder = WORK / folder_name(case.name)
    shutil.rmtree(folder, ignore_errors=True)
    start = save_network(network, folder / "network")
    inputs = Inputs({"prune": start, "teacher": start}, data, task, profile)
    context = Context(folder=folder / "qat", project=WORK, seed=0, threads=1, progress=Printing())
    began = time.process_time()
    made = qat.run(inputs, QatConfig(epochs=0, keep_float="auto", keep_float_drop=case.limit), context)
    seconds = time.process_time() - began
    found = Outcome.model_validate_json((made / "quantization.json").read_bytes()).mixed_precision
    assert found is not None
    x, labels = data.test.read(np.arange(len(data.test))), data.test.labels
    floating = answers(TorchPredictor(network.module), x)
    _, plain = post_training(network, profile, data)
    write_bytes(folder / "plain.onnx", plain)
    write_bytes(folder / "mixed.onnx", twin_file(load_network(made).module, network.spec.contract, profile))
    test, files = [], {"plain": folder / "plain.onnx", "mixed": folder / "mixed.onnx"}
    for kind, path in files.items():
        for runtime in RUNTIMES:
            with open_session(runtime, path) as session:
                test.append({"file": kind, "runtime": session.name, "size_bytes": path.stat().st_size, **figures(answers(session, x), floating, None, labels)})
    timing = {it: ratios(it, {"float": as_float(network, profile, folder.name), **files}, x[:64]) for it in RUNTIMES}
    return {
        "float_accuracy": 100 * float((floating.argmax(1) == labels).mean()),
        "layers": len(found.sensitivities) or None,
        "seconds_cpu": round(seconds, 1),
        "outcome": found.outcome,
        "float_layers": list(found.float_layers),
        "files_measured": len(found.trials),
        "sensitivities": [row.model_dump() for row in found.sensitivities[:6]],
        "test": test,
        "latency": timing,
    }


def answers(predictor: Callable[[Any], Any], x: Any) -> Any:
    """The logits of all samples, 256 at a time."""
    return np.concatenate([predictor(x[k : k + 256]) for k in range(0, len(x), 256)])


def folder_name(case: str) -> str:
    """`case` with letters, digits and hyphens alone."""
    return "".join(letter if letter.isalnum() else "-" for letter in case)


def with_outlier(network: Network, block: str, factor: float) -> Network:
    """The same function: the strongest channel between the two convolutions of a block is `factor` times as large, the weights that take it as much smaller."""
    result = Network(network.spec, build_network(network.spec, stream(0, "copy")).module)
    result.module.load_state_dict(network.module.state_dict())
    result.module.eval()
    residual = result.module.get_submodule(block)
    with torch.no_grad():
        channel = int(residual.bn1.weight.abs().argmax())
        residual.bn1.weight[channel] *= factor
        residual.bn1.bias[channel] *= factor
        residual.conv2.weight[:, channel] /= factor
    return result
