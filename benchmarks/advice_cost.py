"""Does a build take as long as `kdpipe advise` says? The digits' own proposal, advised and built one right after the other.

    python benchmarks/advice_cost.py

On an idle machine: the advice times a few steps and foretells the rest, so what else runs meanwhile counts in one of the two. The figures go to
`benchmarks/results/figures/advice-cost.json`; `python benchmarks/advice_evidence.py` puts them into `docs/advice.md`.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe.foundation.files import write_json
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.store import Store

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "benchmarks" / ".work" / "advice-cost" / "digits"
FIGURES = ROOT / "benchmarks" / "results" / "figures" / "advice-cost.json"

STEPS_OF: dict[str, Callable[[str], bool]] = {
    "teacher": lambda step: step == "teacher",
    "distill": lambda step: step == "distill",
    "prune": lambda step: step == "prune",
    "qat, two targets": lambda step: step.startswith("qat@"),
    "scores": lambda step: step.startswith("score-"),
    "export and bench": lambda step: step.startswith(("export@", "bench@")),
}
"""part of the advice to the steps of the build that it speaks of"""


def main() -> int:
    shutil.rmtree(PROJECT, ignore_errors=True)
    PROJECT.parent.mkdir(parents=True, exist_ok=True)
    advice: dict[str, Any] = json.loads(_kdpipe("advise", str(PROJECT), "--data", "digits", "--write", "--json"))
    begin = time.perf_counter()
    _kdpipe("build", "--project", str(PROJECT), "--json")
    whole = time.perf_counter() - begin
    took = {artifact.record.step: artifact.record.seconds for artifact in Store(PROJECT).artifacts()}
    assert all(any(belongs(step) for belongs in STEPS_OF.values()) for step in took), f"a step that no part speaks of: {sorted(took)}"
    foretold = {part["name"]: {key: part[key] for key in ("low", "likely", "high")} for part in advice["cost"]["parts"]}
    parts = {name: {**foretold[name], "took": sum(took[step] for step in took if belongs(step))} for name, belongs in STEPS_OF.items()}
    total = {key: advice["cost"]["seconds"][key] for key in ("low", "likely", "high")}
    host = diagnose(PROJECT)
    machine = {"cpu": host.cpu, "cores": host.cores, "processor_share": advice["cost"]["processor_share"]}
    write_json(FIGURES, {"machine": machine, "parts": {**parts, "whole build": {**total, "took": whole}}, "steps": took, "toml": advice["toml"]})
    for name, part in {**parts, "whole build": {**total, "took": whole}}.items():
        print(f"{name}: about {part['likely']:.1f} s ({part['low']:.1f} to {part['high']:.1f}); took {part['took']:.1f} s")
    return 0


def _kdpipe(*arguments: str) -> bytes:
    """What the command prints; its progress goes where this one's does."""
    command = [str(Path(sys.executable).with_name("kdpipe")), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    sys.exit(main())
