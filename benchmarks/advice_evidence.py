"""Writes what the rules of `kdpipe advise` rest on: `pipeline/evidence.toml` and `docs/advice.md`, from the raw figures in `benchmarks/results/`.

    python benchmarks/advice_evidence.py

Nothing in the two files is typed by hand; tests compare. Run it again whenever new raw figures are there: the advice follows them.
"""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.foundation.files import write_text
from kdpipe.pipeline.evidence import CRITERIA, EVIDENCE_FILE, Evidence
from kdpipe.robustness.comparison import paired_means
from kdpipe.robustness.intervals import Difference, paired_difference

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILE = "int8 onnxruntime"
ANSWERS = {"robust": ("attack", f"{FILE}/robust"), "clean": ("attack", f"{FILE}/clean"), "corrupted": ("corrupt", f"{FILE}/corrupted")}
"""criterion to the part of a table's raw figures and the per-sample answers in it"""

_HEAD = """\
# Written by benchmarks/advice_evidence.py from benchmarks/results/; do not edit. What the figures mean: evidence.py. Per cent, [value, low, high].
"""


def main() -> int:
    write_text(EVIDENCE_FILE, text_of(gathered(RESULTS)))
    from kdpipe.pipeline.advice_page import page  # it reads the file just written

    write_text(ROOT / "docs" / "advice.md", page())
    return 0


def gathered(results: Path) -> dict[str, Any]:
    """The evidence as the value of its model."""
    value = {
        "tables": dict(_tables(results / "tables")),
        "chains": dict(_chains(results)),
        "noisy": dict(_noisy(results / "noisy")),
        "foretold": _foretold(results),
    }
    Evidence.model_validate(value)
    return value


def text_of(value: Mapping[str, Any]) -> str:
    """The value as TOML: tables of tables, and at their ends numbers, texts and lists of numbers."""
    return "\n".join([_HEAD, *_lines(value, ())]) + "\n"


def _lines(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: item for key, item in value.items() if not isinstance(item, Mapping)}
    if plain:
        yield f"[{'.'.join(path)}]"
        yield from (f"{key} = {json.dumps(item)}" for key, item in plain.items())
        yield ""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _lines(item, (*path, key))


def _tables(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for toml in sorted((ROOT / "benchmarks" / "tables").glob("*.toml")):
        rows, answers, epsilon = {}, {}, 0.0
        for path in sorted((folder / toml.stem).glob("*-attack.json")):
            objective = path.name.removesuffix("-attack.json")
            attacked = json.loads(path.read_text())
            epsilon = attacked["epsilon"]
            corrupt = path.with_name(f"{objective}-corrupt.json")
            rows[objective] = _row(attacked["models"], json.loads(corrupt.read_text())["models"] if corrupt.is_file() else None)
            answers[objective] = {part: np.load(file) for part in ("attack", "corrupt") if (file := path.with_name(f"{objective}-{part}.npz")).is_file()}
        if not rows:
            continue
        project = tomllib.loads(toml.read_text())
        distill = project["distill"]
        yield (
            toml.stem,
            {
                "colour": project["task"]["data"] == "cifar10",
                "attacked": len(next(iter(answers.values()))["attack"][f"{FILE}/robust"]),
                "recipe": {
                    "train_samples": project["task"]["train_samples"],
                    "epochs": distill["epochs"],
                    "batch_size": distill["batch_size"],
                    "learning_rate": distill["learning_rate"],
                    "prune_learning_rate": project["prune"]["learning_rate"],
                    "qat_learning_rate": project["qat"]["learning_rate"],
                    "epsilon": epsilon,
                    "attack_steps": _attack_steps(),
                    "teacher_attack_steps": project["teacher"]["attack"]["steps"],
                },
                "rows": rows,
                "ahead": {criterion: pairs for criterion in CRITERIA if (pairs := _pairs(criterion, rows, answers))},
            },
        )


def _attack_steps() -> int:
    found = re.search(r"^_ATTACK = .*steps = (\d+)", (ROOT / "benchmarks" / "robust_table.py").read_text(), re.MULTILINE)
    assert found, "robust_table.py says how many steps its students' attack has"
    return int(found[1])


def _row(attacked: Mapping[str, Any], corrupted: Mapping[str, Any] | None) -> dict[str, Any]:
    student = {attack["name"]: attack["accuracy"]["value"] for attack in attacked["student"]["attacks"]}
    row = {"clean": _interval(attacked[FILE]["clean"]), "robust": _interval(attacked[FILE]["robust"])}
    if corrupted is not None:
        row["corrupted"] = _interval(corrupted[FILE]["corruption_mean"])
    return {**row, "student_pgd": _rounded(student["pgd-20"]), "student_autoattack": _rounded(student["autoattack"])}


def _pairs(criterion: str, rows: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Each better objective against each that is no better, on the same samples."""
    part, name = ANSWERS[criterion]
    known = {objective: parts[part][name] for objective, parts in answers.items() if part in parts and criterion in rows[objective]}
    compare: Callable[[Any, Any], Difference] = paired_difference if criterion != "corrupted" else _means
    ranked = sorted(known, key=lambda objective: -rows[objective][criterion][0])
    return {first: {second: _bounds(compare(known[first], known[second])) for second in ranked[place + 1 :]} for place, first in enumerate(ranked[:-1])}


def _means(a: Any, b: Any) -> Difference:
    return paired_means(100 * np.asarray(a, np.float64), 100 * np.asarray(b, np.float64), seed=0, name="corrupted")


def _chains(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(results.glob("*.json")):
        example, _, objective = path.stem.rpartition("-")
        project = tomllib.loads((ROOT / "examples" / example / "kdpipe.toml").read_text())
        seconds = json.loads(path.read_text())["seconds_per_step"]
        epoch = {name: seconds[step] / project[name]["epochs"] for name, step in (("distill", "distill"), ("prune", "prune"), ("qat", "qat@cpu"))}
        yield (
            path.stem,
            {
                "epsilon": project["distill"]["attack"]["epsilon"],
                "objective": objective,
                "qat_to_distill": _rounded(epoch["qat"] / epoch["distill"]),
                "prune_to_distill": _rounded(epoch["prune"] / epoch["distill"]),
                "export_seconds": seconds["export@cpu"],
                "bench_seconds": seconds["bench@cpu"],
            },
        )


def _foretold(results: Path) -> dict[str, dict[str, float]]:
    parts = json.loads((results / "figures" / "advice-cost.json").read_text())["parts"]
    return {re.sub(r"\W+", "-", name): {key: round(seconds, 1) for key, seconds in part.items()} for name, part in parts.items()}


def _noisy(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for labels in sorted(path for path in folder.glob("*") if path.is_dir()):
        cells = {path.stem: json.loads(path.read_text()) for path in sorted(labels.glob("*.json")) if path.stem != "teacher"}
        if "plain" not in cells:
            continue
        right = {method: np.load(labels / f"{method}.npz")["clean"] for method in cells}
        wrong, samples = cells["plain"]["labels"]["wrong"]["train"]
        yield (
            labels.name,
            {
                "wrong": _rounded(100 * wrong / samples),
                "clean": {method: _interval(cell["clean"]) for method, cell in cells.items()},
                "ahead_of_plain": {method: _bounds(paired_difference(right[method], right["plain"])) for method in cells if method != "plain"},
            },
        )


def _interval(figure: Mapping[str, Any]) -> list[float]:
    return [_rounded(figure[key]) for key in ("value", "low", "high")]


def _bounds(found: Difference) -> list[float]:
    return [_rounded(found.value), _rounded(found.low), _rounded(found.high)]


def _rounded(value: float) -> float:
    return round(float(value), 2)


if __name__ == "__main__":
    sys.exit(main())
