"""Objectives for wrong labels on the mistakes that people made: CIFAR-10N's `aggre` (9 % wrong), `random1` (17 %) and `worse` (40 %).

    KDPIPE_DATA=… python benchmarks/noisy_labels.py
    KDPIPE_DATA=… python benchmarks/noisy_labels.py --labels worse --methods plain elr

For each set of labels one teacher (`teacher`: plain cross-entropy on the same labels) and one student for each method, all by kdpipe's own stages with
one seed. What everyone has who only has such labels: the epoch that is kept is the best on a validation split whose labels are as wrong, which is
early stopping for the teacher and for `plain` too. The test split (10,000 images) has its right labels and is looked at once, at the end.
`co-teaching` is told the true share of wrong labels; nobody else is told anything. Finished cells are kept, and one that was stopped goes on from its
last epoch: `benchmarks/results/noisy/<labels>/<method>.json`, with the answers in `.npz`. `python benchmarks/results_page.py` makes the table.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.foundation.files import write_json
from kdpipe.foundation.networks import load_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.progress import progress_for
from kdpipe.robustness.intervals import BoolArray, accuracy
from kdpipe.stages import distill, teacher
from kdpipe.stages.distill import DistillConfig
from kdpipe.stages.history import HISTORY_FILE, History
from kdpipe.stages.stage import Context, Inputs, Progress
from kdpipe.stages.teacher import TeacherConfig
from kdpipe.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "noisy"
WORK = ROOT / "benchmarks" / ".work" / "noisy"

SEED = 0
TASK: Mapping[str, Any] = {"data": "cifar10", "train_samples": 6000, "validation_share": 0.04}
TRAINING: Mapping[str, Any] = {"epochs": 12, "batch_size": 128, "learning_rate": 0.05}
TEACHER: Mapping[str, Any] = {"network": "resnet-8", **TRAINING, "patience": 5}
STUDENT: Mapping[str, Any] = {"student": "cnn-small", **TRAINING}

WRONG = {"aggre": 0.09, "random1": 0.17, "worse": 0.40}
"""Label set to its share of wrong labels."""

METHODS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"objective": "plain"},
    "gce": {"objective": "gce"},
    "sce": {"objective": "sce"},
    "elr": {"objective": "elr"},
    "co-teaching": {"objective": "co-teaching"},
    "kd": {"objective": "kd"},
    "correction": {"objective": "correction"},
    "gce-kd": {"objective": "gce", "teacher_share": 0.9},
}
"""What is written into `[distill]`, otherwise with its defaults; `rslad` and the like cost three times as much and look at no label: `robust_table.py`."""

_BATCH = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="+", choices=list(WRONG), default=list(WRONG), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go (default: benchmarks/results/noisy)")
    parser.add_argument("--work", type=Path, default=WORK, help="where networks and checkpoints go (default: benchmarks/.work/noisy)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with progress_for(as_json=False) as progress:
        for labels in options.labels:
            _table_of(labels, options.methods, options.results / labels, options.work / labels, progress)
    return 0


def _table_of(labels: str, methods: Sequence[str], results: Path, work: Path, progress: Progress) -> None:
    """All cells of one set of labels that are not there yet, the teacher first."""
    missing = [method for method in ("teacher", *methods) if not (results / f"{method}.json").is_file()]
    if not missing:
        return
    task = ImageClassification.model_validate({**TASK, "labels": labels})
    work.mkdir(parents=True, exist_ok=True)
    inputs = Inputs({"teacher": work / "teacher"}, task.load(work, SEED), task)
    for method in missing:
        spent = time.process_time()
        folder = work / method
        folder.mkdir(exist_ok=True)
        context = Context(folder, work, SEED, threads=1, progress=progress)
        if method == "teacher":
            teacher.run(inputs, TeacherConfig.model_validate(TEACHER), context)
        else:
            distill.run(inputs, DistillConfig.model_validate({**STUDENT, **_keys(method, labels)}), context)
        record = _record(labels, method, folder, inputs)
        results.mkdir(parents=True, exist_ok=True)
        right = _right(folder, inputs)
        np.savez_compressed(results / f"{method}.npz", clean=right)
        figures = {"clean": accuracy(right).model_dump(mode="json"), "cpu_seconds": round(time.process_time() - spent, 1), "machine": _machine(work)}
        write_json(results / f"{method}.json", {**record, **figures})
        print(f"{labels} {method}: {figures['clean']['value']:.1f} %, {figures['cpu_seconds']:.0f} CPU seconds", file=sys.stderr, flush=True)


def _keys(method: str, labels: str) -> dict[str, Any]:
    return {**METHODS[method], **({"noise_rate": WRONG[labels]} if method == "co-teaching" else {})}


def _right(folder: Path, inputs: Inputs) -> BoolArray:
    """Which test images the network in `folder` names rightly."""
    predictor, split = TorchPredictor(load_network(folder).module), inputs.data.test
    starts = range(0, len(split), _BATCH)
    answers = [predictor(split.read(np.arange(start, min(start + _BATCH, len(split))))).argmax(axis=1) for start in starts]
    return np.concatenate(answers) == split.labels


def _record(labels: str, method: str, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """What was trained, on what, and when it was best on validation; the last epoch tells what early stopping spared."""
    [history] = [History.model_validate(training) for training in _trainings(folder)]
    relabelled = inputs.data.relabelled
    assert relabelled is not None
    return {
        "command": f"python benchmarks/noisy_labels.py --labels {labels} --methods {method if method in METHODS else ' '.join(METHODS)}",
        "labels": relabelled.as_json(),
        "method": dict(TEACHER) if method == "teacher" else {**STUDENT, **_keys(method, labels)},
        "data": {**TASK, "digest": inputs.data.digest},
        "epochs": len(history.epochs),
        "best_epoch": history.best_epoch,
        "validation": {"best": history.best.validation.clean_accuracy, "last": history.epochs[-1].validation.clean_accuracy},
    }


def _trainings(folder: Path) -> list[Any]:
    trainings: list[Any] = json.loads((folder / HISTORY_FILE).read_text())["trainings"]
    return trainings


def _machine(project: Path) -> dict[str, Any]:
    machine = diagnose(project)
    return {"cpu": machine.cpu, "cores": machine.cores, "tools": dict(machine.tools)}


if __name__ == "__main__":
    sys.exit(main())
