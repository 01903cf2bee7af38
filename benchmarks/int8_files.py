"""Builds an example with each objective and keeps what its int8 files, and the networks before them, are worth.

    python benchmarks/int8_files.py digits rslad
    KDPIPE_DATA=… python benchmarks/int8_files.py fashion-mnist rslad kd

One project in `benchmarks/.work` is used for all objectives, so that they share the teacher; a build that was stopped goes on where it was.
Leaves `benchmarks/results/<example>-<objective>.json`: the rows of the final table, seconds per step, and the machine.
`python benchmarks/results_page.py` makes `docs/results.md` of them.
"""

import argparse
import re
import sys
import time
from pathlib import Path

from kdpipe.foundation.files import write_json, write_text
from kdpipe.pipeline import build
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.progress import progress_for
from kdpipe.pipeline.table import summary_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=sorted(path.parent.name for path in ROOT.glob("examples/*/kdpipe.toml")))
    parser.add_argument("objectives", nargs="+", help="distillation objectives, e.g. rslad kd")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for objective in arguments.objectives:
        write_json(RESULTS / f"{arguments.example}-{objective}.json", _built(arguments.example, objective))
    return 0


def _built(example: str, objective: str) -> dict[str, object]:
    project = ROOT / "benchmarks" / ".work" / example
    project.mkdir(parents=True, exist_ok=True)
    write_text(project / "kdpipe.toml", _with_objective((ROOT / "examples" / example / "kdpipe.toml").read_text(), objective))
    started = time.monotonic()
    with progress_for(as_json=False) as progress:
        result = build(project, progress=progress)
    machine = diagnose(project)
    return {
        "command": f"python benchmarks/int8_files.py {example} {objective}",
        "objective": objective,
        "seconds": round(time.monotonic() - started, 1),
        "seconds_per_step": {name: round(step.seconds, 1) for name, step in result.results.items()},
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "instruction_sets": list(machine.instruction_sets), "tools": dict(machine.tools)},
        "rows": summary_rows(result),
    }


def _with_objective(toml: str, objective: str) -> str:
    """The example with another objective for the student: an objective without an attack has no [distill.attack], and is judged as the others are."""
    head, distill, tail = re.split(r"(?ms)(^\[distill\].*?)(?=^\[(?!distill))", toml, maxsplit=1)
    if objective in ("kd", "pointwise", "hierarchical"):
        distill = re.sub(r"(?ms)^\[distill\.attack\].*", "", distill) + "\n"
    return head + re.sub(r"(?m)^objective = .*$", f'objective = "{objective}"', distill) + tail


if __name__ == "__main__":
    sys.exit(main())
