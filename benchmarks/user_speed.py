"""What the user feels (DESIGN §11): `kdpipe --help`, a build with nothing to do, and a second target after the first.

    python benchmarks/user_speed.py [--runs 7]

Whole processes, in turn within one run; prints one JSON object with medians in seconds beside the goals.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
KDPIPE = (str(Path(sys.executable).with_name("kdpipe")),)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "examples" / "digits" / "kdpipe.toml", folder)
        first = _seconds("build", "--project", folder, "--target", "cpu")
        second = _seconds("build", "--project", folder, "--target", "cpu", "--target", "arm")
        warm, helped, python = [], [], []
        for _ in range(runs):
            warm.append(_seconds("build", "--project", folder, "--target", "cpu", "--target", "arm"))
            helped.append(_seconds("--help"))
            python.append(_seconds_of([sys.executable, "-c", "pass"]))
    figures = {
        "first_target_s": (first, "goal 120"),
        "second_target_share_of_first": (second / first, "goal 0.25"),
        "nothing_to_do_s": (statistics.median(warm), "goal 1.0"),
        "help_s": (statistics.median(helped), "goal 0.2"),
        "bare_python_s": (statistics.median(python), "for comparison"),
    }
    print(json.dumps({name: {"value": round(value, 3), "note": note} for name, (value, note) in figures.items()}, indent=2))
    return 0


def _seconds(*arguments: str) -> float:
    return _seconds_of([*KDPIPE, *arguments])


def _seconds_of(command: list[str]) -> float:
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 3):  # 3: a budget of the example is missed; the time is the same
        sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
