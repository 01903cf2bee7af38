"""What `kdpipe data check` finds of what is known to be wrong: label errors, altered copies; and what it takes in time and memory.

    KDPIPE_DATA=/data python benchmarks/data_check.py labels|copies|cost [--samples 3000]

`labels`: suspects among the training labels against the labels known to be right, on the first samples of the training split: digits and
Fashion-MNIST with a tenth of the labels replaced by a random other one, CIFAR-10 with the labels that people gave (CIFAR-10N).
`copies`: altered copies planted among the samples, and the pairs that are found without planting, which bound the false ones.
`cost`: Fashion-MNIST's training and test set, whole and in part, each in a process of its own.
Prints one JSON object; intervals are Wilson's at 95 %.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.intervals import wilson
from kdpipe.tasks.data.inspection.findings import SPLITS, Inspection
from kdpipe.tasks.data.inspection.inspection import Checked, inspected
from kdpipe.tasks.data.partition import Drawn
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit
from kdpipe.tasks.image_classification import ImageClassification

PLANTED_NOISE = 0.1
MARGINS = (0.0, 0.25, 0.5, 0.75)
COPIES = 50  # of each alteration
TRAINED = {"digits": 1079, "fashion-mnist": 54_000, "cifar10": 45_000}


@dataclass(frozen=True)
class Set:
    """The first samples of a training split; `rows`: where they stand in the source."""

    name: str
    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "copies", "cost", "one-cost"))
    parser.add_argument("--samples", type=int, default=3000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"labels": labels, "copies": copies, "cost": cost, "one-cost": one_cost}[arguments.what](arguments.samples)
    print(json.dumps(figures, indent=2))


def labels(samples: int) -> Any:
    """Precision and recall of the suspects, at several least margins."""
    rows = []
    for name, noise in (("digits", "planted"), ("fashion-mnist", "planted"), ("cifar10", "aggre"), ("cifar10", "random1"), ("cifar10", "worse")):
        data = loaded(name, samples)
        given = noisy(data, noise)
        begin = time.perf_counter()
        found = inspection_of(data.images, given, data.classes)
        seconds = time.perf_counter() - begin
        assert found.label_model is not None
        wrong = given != data.labels
        suspects = found.of("suspected-label")
        index = np.array([finding.samples[0].index for finding in suspects], np.int64)
        suggested = np.array([finding.suggested for finding in suspects], np.int64)
        margin = np.array([finding.score for finding in suspects])
        rows.append(
            {
                "data": name,
                "noise": noise,
                "n": len(given),
                "wrong": int(wrong.sum()),
                "estimated_noise": found.label_model.noise_rate,
                "agreement_with_given": found.label_model.accuracy,
                "seconds": round(seconds, 1),
                "at_margin": [judged(least, index[margin >= least], suggested[margin >= least], wrong, data.labels) for least in MARGINS],
            }
        )
    return rows


def judged(least: float, index: np.ndarray, suggested: np.ndarray, wrong: np.ndarray, true: np.ndarray) -> Mapping[str, Any]:
    """`right_after`: the share of right labels, were all suspects relabelled, or left out."""
    hits = int(wrong[index].sum())
    relabelled = ~wrong
    relabelled[index] = suggested == true[index]
    kept = np.setdiff1d(np.arange(len(wrong)), index)
    return {
        "least_margin": least,
        "suspects": len(index),
        "precision": share(hits, len(index)),
        "recall": share(hits, int(wrong.sum())),
        "suggested_right": share(int((suggested == true[index]).sum()), len(index)),
        "right_after_relabel": share(int(relabelled.sum()), len(relabelled)),
        "right_after_drop": share(int((~wrong[kept]).sum()), len(kept)),
    }


def copies(samples: int) -> Any:
    """How many altered copies are found, and how many other pairs."""
    rows = []
    for name in ("digits", "fashion-mnist", "cifar10"):
        data = loaded(name, min(samples + COPIES * len(ALTERATIONS), TRAINED[name]))
        images = data.images.copy()
        draws = numpy_stream(0, "benchmark/copies")
        before = pairs_in(inspection_of(images, data.labels, data.classes, labels=False))
        planted: dict[str, list[tuple[int, int]]] = {}
        start = len(images) - COPIES * len(ALTERATIONS)
        for k, (kind, alter) in enumerate(ALTERATIONS.items()):
            places = [(int(original), start + k * COPIES + i) for i, original in enumerate(draws.choice(start, COPIES, replace=False))]
            for original, copy in places:
                images[copy] = alter(images[original], draws)
            planted[kind] = places
        found = pairs_in(inspection_of(images, data.labels, data.classes, labels=False))
        rows.append(
            {
                "data": name,
                "n": len(images),
                "found": {kind: share(sum(pair in found for pair in places), COPIES) for kind, places in planted.items()},
                "pairs_without_planting": len(before),
            }
        )
    return rows


def pairs_in(found: Inspection) -> set[tuple[int, int]]:
    """All pairs that are told to be copies or near copies."""
    kinds = ("duplicate", "contradiction", "near-duplicate", "near-contradiction")
    groups = [sorted(sample.index for sample in finding.samples) for finding in found.of(*kinds)]
    return {(a, b) for group in groups for k, a in enumerate(group) for b in group[k + 1 :]}


def jpeg(image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Compressed at quality 75 and decoded."""
    levels = np.rint(image * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(file, "JPEG", quality=75)
    pixels = np.asarray(Image.open(file), np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def rescaled(image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """At three quarters of the size and back."""
    x = torch.from_numpy(image)[None]
    smaller = F.interpolate(x, scale_factor=0.75, mode="bilinear", antialias=True)
    return F.interpolate(smaller, size=x.shape[2:], mode="bilinear")[0].numpy()


ALTERATIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "brightness and contrast": lambda image, draws: np.clip(0.85 * image + 0.08, 0, 1),
    "noise of deviation 0.02": lambda image, draws: np.clip(image + draws.normal(0, 0.02, image.shape).astype(np.float32), 0, 1),
    "JPEG of quality 75": jpeg,
    "scaled to 0.75 and back": rescaled,
    "mirrored": lambda image, draws: image[:, :, ::-1].copy(),
    "shifted by a pixel": lambda image, draws: np.roll(image, 1, axis=2),
}


def cost(samples: int) -> Any:
    """Time and peak memory of whole checks in processes of their own; the first shows what the data and torch take alone."""
    rows = []
    for count in (100, 15_000, 60_000):
        told = subprocess.run([sys.executable, __file__, "one-cost", "--samples", str(count)], capture_output=True, text=True, check=True)
        rows.append(json.loads(told.stdout))
    return rows


def one_cost(samples: int) -> Any:
    """One check of so many training samples of Fashion-MNIST with its test set."""
    found = ImageClassification(data="fashion-mnist").uncleaned(Path(), 0)
    assert isinstance(found, Drawn)
    train = found.splits["train"]
    rows = np.concatenate([train.rows, found.splits["validation"].rows])[:samples]
    labels = np.concatenate([train.labels, found.splits["validation"].labels])[:samples]
    splits = {"train": RowsSplit(train.samples, rows, labels), "test": found.splits["test"]}
    begin, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        inspected(Checked("fashion-mnist", "0" * 64, found.classes, found.shape, splits, lambda name, index: str(index)), Path(folder), plain)
    return {
        "train": samples,
        "test": len(splits["test"]),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "load": round(os.getloadavg()[0], 1),
    }


def loaded(name: str, samples: int) -> Set:
    """The first samples of the training split, in its shuffled order."""
    found = ImageClassification(data=name).uncleaned(Path(), 0)
    assert isinstance(found, Drawn)
    train = found.splits["train"]
    index = np.arange(min(samples, len(train)), dtype=np.int64)
    return Set(name, found.classes, train.read(index), train.labels[index], train.rows[index])


def noisy(data: Set, noise: str) -> np.ndarray:
    """The labels that the check is given."""
    if noise == "planted":
        draws = numpy_stream(0, "benchmark/labels")
        moved = (data.labels + draws.integers(1, len(data.classes), len(data.labels))) % len(data.classes)
        return np.where(draws.random(len(data.labels)) < PLANTED_NOISE, moved, data.labels)
    people = np.load(Path(os.environ["KDPIPE_DATA"], "cifar10n-labels.npz"))
    assert (people["clean"][data.rows] == data.labels).all()
    return people[noise][data.rows].astype(np.int64)


def inspection_of(images: np.ndarray, given: np.ndarray, classes: tuple[str, ...], *, labels: bool = True) -> Inspection:
    """The check of these samples as a training split."""
    split = RowsSplit(ArraySamples(images), np.arange(len(given), dtype=np.int64), given)
    with tempfile.TemporaryDirectory() as folder:
        data = Checked("benchmark", "0" * 64, classes, images.shape[1:], {SPLITS[0]: split}, lambda name, index: str(index))
        return inspected(data, Path(folder), plain, labels=labels)


def plain(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
    return items


def share(hits: int, n: int) -> Mapping[str, Any]:
    """A share in per cent with its interval."""
    if n == 0:
        return {"percent": None, "n": 0}
    low, high = wilson(hits, n)
    return {"percent": round(100 * hits / n, 1), "low": round(100 * low, 1), "high": round(100 * high, 1), "n": n}


if __name__ == "__main__":
    main()
