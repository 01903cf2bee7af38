"""The sample images: each clean, attacked and corrupted, with what the shipped file said to it; PNGs inside the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kdpipe.foundation.predictor import Float32Array
from kdpipe.pipeline.results import SampleImages
from kdpipe.stages.judged_examples import Answer

LARGEST_SIDE = 168
"""pixels; twice the size at which the page shows a picture, so that it is sharp on a dense screen"""


@dataclass(frozen=True)
class Cell:
    """One picture: a data URI, what a screen reader says, and the model's answer below it, marked where it is wrong."""

    image: str
    alt: str
    says: str
    wrong: bool = False


@dataclass(frozen=True)
class Gallery:
    """One row a sample, one column a version of it."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def gallery(name: str, images: SampleImages, labels: Sequence[str]) -> Gallery | None:
    """The gallery of one model; None where its samples are no pictures (one or three channels, height, width)."""
    examples, versions = images.examples, images.versions
    clean = versions["clean"]
    if clean.ndim != 4 or clean.shape[1] not in (1, 3):
        return None
    adversarial = versions.get("adversarial")
    change = None if adversarial is None else adversarial - clean
    columns = ["clean"]
    columns += [] if change is None else [f"attacked: {examples.attack}", f"the change, {_amplification(change):.3g} times as strong"]
    corrupted = [version for version in versions if version.startswith("corrupted/")]
    columns += [f"{version.removeprefix('corrupted/')}, severity {examples.severity}" for version in corrupted]
    rows = []
    for k, label in enumerate(examples.labels):
        truth = _name(labels, label)

        def cell(version: str, k: int = k, label: int = label, truth: str = truth) -> Cell:
            answer = examples.answers[version][k]
            return Cell(png(versions[version][k]), f"{truth}, {version.replace('/', ': ')}", _says(answer, labels, label), answer.label != label)

        row = [cell("clean")]
        if change is not None:
            row += [cell("adversarial"), Cell(png(0.5 + change[k] * _amplification(change)), f"what the attack changed on {truth}", f"is {truth}")]
        rows.append((*row, *(cell(version) for version in corrupted)))
    return Gallery(name, tuple(columns), tuple(rows))


def png(pixels: Float32Array) -> str:
    """A sample, (1 or 3, height, width) in [0, 1], as the data URI of a PNG; values outside are clipped.

    Up to `LARGEST_SIDE` pixels a side the picture is lossless; a larger one is averaged down to it, or the page would weigh megabytes.
    """
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _amplification(change: Float32Array) -> float:
    """What brings the largest change of all samples to half of the value range, around mid-grey."""
    largest = float(np.abs(change).max())
    return 0.5 / largest if largest > 0 else 1.0


def _says(answer: Answer, labels: Sequence[str], label: int) -> str:
    return f"{'✓' if answer.label == label else '✗'} {_name(labels, answer.label)}, {100 * answer.confidence:.0f} %"


def _name(labels: Sequence[str], label: int) -> str:
    return labels[label] if label < len(labels) else str(label)
