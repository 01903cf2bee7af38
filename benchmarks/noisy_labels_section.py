"""The table of `docs/results.md` that `noisy_labels.py` left figures for: methods beside each other, at each share of wrong labels."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.robustness.intervals import paired_difference

LABELS = ("aggre", "random1", "worse")
ORDER = ("teacher", "plain", "gce", "sce", "elr", "co-teaching", "kd", "correction", "gce-kd")
NAMES = {
    "teacher": "(teacher, `plain`)",
    "gce-kd": "`gce`, `teacher_share = 0.9`",
}
REFERENCE = "plain"
"""The student that the others are compared with, sample by sample."""

Cell = tuple[Mapping[str, Any], npt.NDArray[np.bool_]]


def sections(folder: Path) -> Iterator[str]:
    """Markdown, where `folder` (`benchmarks/results/noisy`) holds any cell."""
    cells = {labels: _cells(folder / labels) for labels in LABELS}
    if any(cells.values()):
        yield "\n\n".join(_section({labels: own for labels, own in cells.items() if own}))


def _cells(folder: Path) -> dict[str, Cell]:
    found = {}
    for method in ORDER:
        record, answers = folder / f"{method}.json", folder / f"{method}.npz"
        if record.is_file() and answers.is_file():
            with np.load(answers) as file:
                found[method] = (json.loads(record.read_text()), file["clean"])
    return found


def _section(cells: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    records = [record for own in cells.values() for record, _ in own.values()]
    student = next((record["method"] for own in cells.values() for method, (record, _) in own.items() if method != "teacher"), None)
    trained = f"`{student['student']}` student, {student['epochs']} epochs" if student else "teacher alone"
    samples, minutes = records[0]["data"]["train_samples"], sum(record["cpu_seconds"] for record in records) / 60
    yield "## Human label errors: CIFAR-10N"
    machine = records[0]["machine"]["cpu"]
    yield f"`KDPIPE_DATA=… python benchmarks/noisy_labels.py` · {samples:,} training images, {trained}, one seed · {minutes:.0f} CPU minutes, {machine}"
    yield (
        "Accuracy in per cent on the clean test split, with its 95 % interval; below it the difference to `plain` in points, on the same images. "
        "The epoch that is kept is the best on a validation split with as many wrong labels, for the teacher and for `plain` too. "
        "`co-teaching` is told the true share of wrong labels, the others are told nothing; all else is at its defaults."
    )
    yield "\n".join(_table(cells))
    yield "How much the last epoch fell below the best one on the noisy validation split, in points (what keeping the best epoch spares):"
    yield "\n".join(_decay(cells))


def _table(cells: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    yield f"| objective | {' | '.join(_column(labels, own) for labels, own in cells.items())} |"
    yield f"| --- |{' --- |' * len(cells)}"
    for method in ORDER:
        if any(method in own for own in cells.values()):
            yield f"| {NAMES.get(method, f'`{method}`')} | {' | '.join(_cell(method, own) for own in cells.values())} |"


def _column(labels: str, own: Mapping[str, Cell]) -> str:
    record, _ = next(iter(own.values()))
    wrong, count = record["labels"]["wrong"]["train"]
    return f"`{labels}`, {100 * wrong / count:.1f} % wrong"


def _cell(method: str, own: Mapping[str, Cell]) -> str:
    if method not in own:
        return "not measured"
    record, right = own[method]
    figure = record["clean"]
    told = f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}], n {figure['n']:,}"
    if method == REFERENCE or REFERENCE not in own:
        return told
    apart = paired_difference(right, own[REFERENCE][1])
    return f"{told}<br>{apart.value:+.1f} [{apart.low:+.1f}, {apart.high:+.1f}]"


def _decay(cells: Mapping[str, Mapping[str, Cell]]) -> Iterator[str]:
    yield f"| objective | {' | '.join(f'`{labels}`' for labels in cells)} |"
    yield f"| --- |{' --- |' * len(cells)}"
    for method in ORDER:
        if any(method in own for own in cells.values()):
            yield f"| {NAMES.get(method, f'`{method}`')} | {' | '.join(_fell(own.get(method)) for own in cells.values())} |"


def _fell(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    record, _ = cell
    return f"{100 * (record['validation']['best'] - record['validation']['last']):.1f} (epoch {record['best_epoch']} of {record['epochs']})"
