"""A handful of test samples as the report shows them: clean, adversarial, corrupted, and what the model said to each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors.torch import save

from kdpipe.foundation.files import write_bytes, write_text
from kdpipe.foundation.predictor import Float32Array, Predictor
from kdpipe.robustness.calibration import confidences
from kdpipe.robustness.crafting import Replay
from kdpipe.robustness.evaluation import Questions
from kdpipe.robustness.samples import Int64Array, Samples

TENSORS_FILE = "samples.safetensors"
ANSWERS_FILE = "samples.json"
SEVERITY = 3
_MOST = 10


class Answer(BaseModel, extra="forbid", frozen=True):
    """What the model said to one sample: the class index, and its probability."""

    label: int
    confidence: float = Field(ge=0, le=1)


class Examples(BaseModel, extra="forbid", frozen=True):
    """samples.json. `answers`: by version of the sample (`clean`, `adversarial`, `corrupted/jpeg`), in the order of `indices`; the images of each
    version stand under the same name in samples.safetensors, (n, *shape) in [0, 1].
    """

    indices: tuple[int, ...] = Field(description="of the test split")
    labels: tuple[int, ...]
    attack: str | None = Field(description="the attack that made `adversarial`; None where there is none")
    severity: int = SEVERITY
    answers: dict[str, tuple[Answer, ...]]


def write_examples(folder: Path, predictor: Predictor, samples: Samples, questions: Questions, adversarial: Replay | None) -> None:
    """The first attacked sample of each class, of at most ten classes: not chosen by how the attack went."""
    chosen = _first_of_each_class(samples.labels, questions.black_box)
    versions = _versions(samples, questions, chosen, adversarial)
    examples = Examples(
        indices=tuple(map(int, chosen)),
        labels=tuple(map(int, samples.labels[chosen])),
        attack=None if adversarial is None else f"{adversarial.name} on {adversarial.crafted_on}",
        answers={name: _answers(predictor, x) for name, x in versions.items()},
    )
    write_bytes(folder / TENSORS_FILE, save({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in versions.items()}))
    write_text(folder / ANSWERS_FILE, examples.model_dump_json(indent=2) + "\n")


def _first_of_each_class(labels: Int64Array, indices: Int64Array) -> Int64Array:
    _, places = np.unique(labels[indices], return_index=True)
    return indices[places[:_MOST]]


def _versions(samples: Samples, questions: Questions, chosen: Int64Array, adversarial: Replay | None) -> Mapping[str, Float32Array]:
    clean = samples.read(chosen)
    versions = {"clean": clean}
    if adversarial is not None:
        versions["adversarial"] = adversarial.x_adv[np.searchsorted(adversarial.indices, chosen)]
    for name in questions.corruptions:
        versions[f"corrupted/{name}"] = questions.corrupted_images(name, SEVERITY, clean, chosen)
    return versions


def _answers(predictor: Predictor, x: Float32Array) -> tuple[Answer, ...]:
    logits = predictor(x)
    said = logits.argmax(axis=1)
    sure = confidences(logits, said).confidence
    return tuple(Answer(label=int(label), confidence=min(1.0, float(confidence))) for label, confidence in zip(said, sure, strict=True))
