"""The tables of `docs/results.md` that `robust_table.py` left figures for: objectives side by side, and what pruning and int8 cost."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.robustness.comparison import holm
from kdpipe.robustness.intervals import Difference, paired_difference

TITLES = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10 (JPEG)"}
ORDER = ("plain", "kd", "augmix", "at", "trades", "ard", "rslad", "iad", "mtard", "adaad")
REFERENCE = "kd"
"""The objective that the others are compared with, sample by sample."""

_FILES = ("int8 onnxruntime", "int8 openvino")
_NOT_MEASURED = "not measured"

Figures = Mapping[str, Any]
Answers = Mapping[str, npt.NDArray[Any]]


def sections(folder: Path) -> Iterator[str]:
    """Markdown for every data set that has figures in `folder` (`benchmarks/results/tables`)."""
    for name, title in TITLES.items():
        records = {objective: parts for objective in ORDER if "attack" in (parts := _parts(folder / name, objective))}
        if records:
            yield "\n\n".join(_tables(name, title, records, {objective: _answers(folder / name, objective) for objective in records}))


def _parts(folder: Path, objective: str) -> dict[str, Figures]:
    paths = {part: folder / f"{objective}-{part}.json" for part in ("train", "attack", "corrupt")}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.is_file()}


def _answers(folder: Path, objective: str) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for part in ("attack", "corrupt"):
        path = folder / f"{objective}-{part}.npz"
        if path.is_file():
            with np.load(path) as file:
                found |= {name: file[name] for name in file.files if name != "indices"}
    return found


def _tables(name: str, title: str, records: Mapping[str, Mapping[str, Figures]], answers: Mapping[str, Answers]) -> Iterator[str]:
    first = next(iter(records.values()))
    minutes = sum(record["seconds"] for parts in records.values() for record in parts.values()) / 60
    samples, epsilon = first["train"]["train_samples"], first["attack"]["epsilon"] * 255
    yield f"## {title}: objectives side by side"
    yield (
        f"`KDPIPE_DATA=… python benchmarks/robust_table.py {name}` · {samples:,} training samples, one seed, L∞ {epsilon:.0f}/255, "
        f"attacks of five steps in training · {minutes:.0f} minutes on one core, with other work on the machine"
    )
    yield "Float students (weights as trained, before pruning):"
    yield "\n".join(
        [_HEAD.format("objective"), _RULE.format("---"), _row("(teacher)", first, "teacher"), *(_row(f"`{o}`", r, "student") for o, r in records.items())]
    )
    yield (
        "The int8 files that ship (pruned, quantization-aware fine-tuned), in both runtimes. AutoAttack: the student's, replayed. Worst: right under all of "
        "PGD-20, APGD-CE and APGD-T from the twin, AutoAttack and PGD-20 from the student, PGD-20 from the pruned network and from the teacher, and (200 of "
        "the samples) Square with 1,000 queries on the file:"
    )
    rows = [
        _row(f"`{objective}` · {model.split()[1]} · {parts['train']['size_bytes']['int8'] / 1000:.1f} kB", parts, model)
        for objective, parts in records.items()
        for model in _FILES
    ]
    yield "\n".join([_HEAD.format("objective · runtime · size"), _RULE.format("---"), *rows])
    yield "What pruning and int8 cost, in percentage points on the same samples (the int8 file in ONNX Runtime; negative: worse than before):"
    yield "\n".join([_COST_HEAD, _COST_RULE, *(_cost_row(objective, own) for objective, own in answers.items())])
    if REFERENCE in answers:
        yield f"The int8 files (ONNX Runtime) less that of `{REFERENCE}`, on the same samples; p by McNemar, adjusted for all rows of the column (Holm):"
        yield "\n".join(_against(answers))


_HEAD = "| {} | clean % | PGD-20 % | AutoAttack % | worst % | corrupted % | ECE % |"
_RULE = "| {} | --- | --- | --- | --- | --- | --- |"
_COST_HEAD = "| objective | pruning: clean | pruning: PGD-20 | int8: clean | int8: PGD-20 | both: worst | both: corrupted |"
_COST_RULE = "| --- | --- | --- | --- | --- | --- | --- |"


def _row(label: str, parts: Mapping[str, Figures], model: str) -> str:
    card = parts["attack"]["models"][model]
    attacks = {attack["name"]: attack["accuracy"] for attack in card["attacks"]}
    corrupted = parts["corrupt"]["models"][model]["corruption_mean"] if "corrupt" in parts else None
    figures = (card["clean"], attacks.get("pgd-20"), attacks.get("autoattack"), card["robust"], corrupted, card["ece"])
    return f"| {label} | {' | '.join(_figure(figure) for figure in figures)} |"


def _figure(figure: Figures | None) -> str:
    if figure is None or figure["value"] is None:
        return _NOT_MEASURED
    return f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}], n {figure['n']:,}"


def _cost_row(objective: str, own: Answers) -> str:
    file = _FILES[0]
    pairs = (
        ("pruned/clean", "student/clean"),
        ("pruned/attack/pgd-20", "student/attack/pgd-20"),
        (f"{file}/clean", "pruned/clean"),
        (f"{file}/attack/pgd-20", "pruned/attack/pgd-20"),
        (f"{file}/robust", "student/robust"),
    )
    cells = [_difference(paired_difference(own[after], own[before])) for after, before in pairs]
    cells.append(_mean_difference(own[f"{file}/corrupted"], own["student/corrupted"]) if f"{file}/corrupted" in own else _NOT_MEASURED)
    return f"| `{objective}` | {' | '.join(cells)} |"


def _against(answers: Mapping[str, Answers]) -> Iterator[str]:
    yield "| objective | clean | PGD-20 | worst |"
    yield "| --- | --- | --- | --- |"
    others = [objective for objective in answers if objective != REFERENCE]
    columns = []
    for question in ("clean", "attack/pgd-20", "robust"):
        key = f"{_FILES[0]}/{question}"
        found = [paired_difference(answers[objective][key], answers[REFERENCE][key]) for objective in others]
        columns.append([f"{_difference(one)}, p {_p(p)}" for one, p in zip(found, holm([one.p for one in found]), strict=True)])
    for objective, *cells in zip(others, *columns, strict=True):
        yield f"| `{objective}` | {' | '.join(cells)} |"


def _difference(difference: Difference) -> str:
    return f"{difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def _mean_difference(after: npt.NDArray[Any], before: npt.NDArray[Any]) -> str:
    """Means over samples, by the normal approximation: n is in the hundreds and each value a mean of 75 answers."""
    apart = 100 * (after - before)
    half = 1.96 * apart.std(ddof=1) / np.sqrt(len(apart))
    return f"{apart.mean():+.1f} [{apart.mean() - half:+.1f}, {apart.mean() + half:+.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
