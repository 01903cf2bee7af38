"""Writes `docs/results.md` from the raw figures in `benchmarks/results/*.json`; nothing in that page is typed by hand.

    python benchmarks/results_page.py

`docs/results.head.md` has the words before the tables. A test compares the page with what this would write.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"

_TITLES = {
    "digits-rslad": "Digits: the whole chain, `rslad`",
    "fashion-mnist-rslad": "Fashion-MNIST: the whole chain, `rslad`",
    "fashion-mnist-kd": "Fashion-MNIST: the same with plain `kd`",
}


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
    return "\n\n".join(parts) + "\n"


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
