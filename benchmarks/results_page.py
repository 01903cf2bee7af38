"""Writes `docs/results.md` from the raw figures in `benchmarks/results/*.json`; nothing in that page is typed by hand.

    python benchmarks/results_page.py

`docs/results.head.md` has the words before the tables. A test compares the page with what this would write.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # a test loads this file by its path
import latency_pruning_section
import latency_section
import noisy_labels_section
import robust_table_section
import schemes_section
import target_matrix_section
import wrong_variant_section

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"

_TITLES = {
    "digits-rslad": "Digits: the whole chain, `rslad`",
    "fashion-mnist-rslad": "Fashion-MNIST: the whole chain, `rslad`",
    "fashion-mnist-kd": "Fashion-MNIST: the same with plain `kd`",
}

_FIGURES = {
    "user-speed": ("What the user feels", "python benchmarks/user_speed.py"),
    "objective-steps": ("What a step costs, and the authors' loops beside ours", "python benchmarks/objective_steps.py --threads 1 --clock cpu --rounds 3"),
    "autoattack-beside-toolbox": (
        "AutoAttack beside the Adversarial Robustness Toolbox, on the same 500 digits",
        "python benchmarks/attacks_beside_art.py --attacks autoattack --n 500 --rounds 1",
    ),
    "killed-builds": ("Builds of the digits killed with SIGKILL, and resumed", "python benchmarks/killed_builds.py --kills 10"),
}
"""Raw figures that are no table of models: what each command printed, in `benchmarks/results/figures/`."""


def main() -> int:
    PAGE.write_text(page())
    return 0


def page() -> str:
    """The whole page as Markdown."""
    parts = [(ROOT / "docs" / "results.head.md").read_text().rstrip()]
    for name, title in _TITLES.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.is_file():
            parts.append(_section(title, json.loads(path.read_text())))
    parts += robust_table_section.sections(ROOT / "benchmarks" / "results" / "tables")
    parts += noisy_labels_section.sections(ROOT / "benchmarks" / "results" / "noisy")
    parts += latency_section.sections(ROOT / "benchmarks" / "results" / "figures")
    parts += target_matrix_section.sections(ROOT / "benchmarks" / "results" / "figures" / "target-matrix.json")
    parts += wrong_variant_section.sections(ROOT / "benchmarks" / "results" / "figures")
    parts += latency_pruning_section.sections(ROOT / "benchmarks" / "results" / "figures")
    parts += schemes_section.sections(ROOT / "benchmarks" / "results" / "figures")
    for name, (title, command) in _FIGURES.items():
        path = ROOT / "benchmarks" / "results" / "figures" / f"{name}.json"
        if path.is_file():
            rows = [f"| {what} | {value} |" for what, value in _flat(json.loads(path.read_text()))]
            parts.append("\n".join([f"## {title}", "", f"`{command}`", "", "| figure | value |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and all(isinstance(each, bool) for each in value.values()):
        yield name, f"{sum(value.values())} of {len(value)}"
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(each, f"{name} · {key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _section(title: str, record: dict[str, Any]) -> str:
    attack = next(row["attack"] for row in record["rows"] if row["attack"])
    lines = [f"## {title}", "", f"`{record['command']}` · {record['machine']['cpu']}, {record['machine']['cores']} cores", ""]
    lines += [f"| model | size kB | clean % | {attack} % | worst attack % | corrupted % | p50 / p90 ms |", "| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [_row(row) for row in record["rows"]]
    steps = " · ".join(f"{name} {seconds:.0f}" for name, seconds in record["seconds_per_step"].items())
    return "\n".join([*lines, "", f"Seconds per step: {steps}; in all {sum(record['seconds_per_step'].values()):.0f}."])


def _row(row: dict[str, Any]) -> str:
    name = row["model"] if row["target"] is None else f"{row['model']} {row['target']}" + (f" · {row['runtime'].split()[0]}" if row["runtime"] else "")
    if row["p50_ms"] is not None:
        p90 = f"{row['p90_ms']:.3g}" if row["p90_ms"] is not None else "–"
        latency = f"{row['p50_ms']:.3g} / {p90}"
    else:
        latency = row["latency_reason"] or ""
    figures = (row["clean"], row["attacked"], row["robust"], row["corrupted"])
    return f"| {name} | {row['size_bytes'] / 1000:.1f} | {' | '.join(_figure(figure) for figure in figures)} | {latency} |"


def _figure(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return figure["reason"] or "not measured"
    return f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}], n {figure['n']:,}"


if __name__ == "__main__":
    sys.exit(main())
