"""The adversarial samples that a score step leaves for the steps after it: adversarial.safetensors, written and read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.files import write_bytes
from kdpipe.robustness.attacks.method import AttackMethod
from kdpipe.robustness.crafting import CurvePoint, Replay
from kdpipe.robustness.evaluation import Questions

ADVERSARIAL_FILE = "adversarial.safetensors"

_RESCALED = "/rescaled"
_CURVE = "curve/"


def write_adversarial(folder: Path, replays: Sequence[Replay], curve: Sequence[CurvePoint]) -> None:
    """adversarial.safetensors: attack name (`pgd-20`, `pgd-20/rescaled`, `curve/0.05`) to float32 samples in the order of its indices in correct.npz."""
    tensors = {f"{replay.name}{_RESCALED if 'rescaled' in replay.crafted_on else ''}": replay.x_adv for replay in replays}
    tensors |= {f"{_CURVE}{point.epsilon!r}": point.x_adv for point in curve}
    write_bytes(folder / ADVERSARIAL_FILE, save({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in tensors.items()}))


def read_adversarial(
    folder: Path, methods: Mapping[str, AttackMethod], questions: Questions, crafted_on: str, *, classes: int
) -> tuple[list[Replay], list[CurvePoint]]:
    """What a score step left in `folder` of the attacks `methods`, and its curve; VerificationError when it is damaged or of other samples.

    `classes`: how many the data has.
    """
    path = folder / ADVERSARIAL_FILE
    try:
        tensors = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise VerificationError(f"adversarial samples cannot be read: {error}", at=path, do="run 'kdpipe build' again; the step will be rebuilt") from error
    replays: list[Replay] = []
    curve: list[CurvePoint] = []
    for name, x_adv in tensors.items():
        indices = questions.curve if name.startswith(_CURVE) else questions.attacked
        method = methods.get(name.removesuffix(_RESCALED))
        if name.startswith(_CURVE):
            _require_same_number(len(x_adv), len(indices), path)
            curve.append(CurvePoint(float(name.removeprefix(_CURVE)), indices, x_adv))
        elif method is not None:
            _require_same_number(len(x_adv), len(indices), path)
            made = f"{crafted_on} (rescaled logits)" if name.endswith(_RESCALED) else crafted_on
            replays.append(Replay(name.removesuffix(_RESCALED), method, made, indices, x_adv, method.note(classes)))
    order = list(methods)
    return sorted(replays, key=lambda replay: order.index(replay.name)), sorted(curve, key=lambda point: point.epsilon)


def _require_same_number(found: int, asked: int, path: Path) -> None:
    if found != asked:
        raise VerificationError(f"{found} adversarial samples, {asked} were asked for", at=path, do="run 'kdpipe build' again; the step will be rebuilt")
