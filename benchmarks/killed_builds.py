"""Kills a demo build with SIGKILL at random moments, resumes it each time, and compares the end with an undisturbed build.

    python benchmarks/killed_builds.py [--kills 10] [--seed 0] [--config examples/digits/kdpipe.toml]

Prints one JSON object: when each kill fell, and for every network and every bundle file whether it is equal byte for
byte. Files that hold times (`bench.json`, `report.html`, `manifest.json`) differ between any two builds and are left out.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdpipe.foundation.files import sha256_of

HOLD_TIMES = {"bench.json", "report.html", "manifest.json"}


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder) / "undisturbed", Path(folder) / "disturbed"
        for project in (undisturbed, disturbed):
            project.mkdir()
            shutil.copy(arguments.config, project / "kdpipe.toml")
        started = time.monotonic()
        _require_success(_build(undisturbed).wait(), undisturbed)
        whole_seconds = time.monotonic() - started
        kills = _killed_until_finished(disturbed, arguments.kills, whole_seconds, random.Random(arguments.seed))
        equal = _compared(undisturbed, disturbed)
    print(json.dumps({"undisturbed_seconds": round(whole_seconds, 1), "kills_after_seconds": kills, "files": len(equal), "equal": equal}, indent=2))
    return 0 if equal and all(equal.values()) and len(kills) == arguments.kills else 1


def _killed_until_finished(project: Path, kills: int, whole_seconds: float, draw: random.Random) -> list[float]:
    """The seconds that each killed run lived; the last run is left to finish."""
    lived = []
    for _ in range(kills):
        # Each run lives for a random part of what an even division would give it, so that all kills fall inside the build.
        seconds = draw.uniform(0.3, 1.4) * whole_seconds / (kills + 1)
        process = _build(project)
        try:
            process.wait(timeout=seconds)
            break  # it finished before its time: fewer kills are reported than were asked for
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            lived.append(round(seconds, 2))
    _require_success(_build(project).wait(), project)
    return lived


def _compared(one: Path, other: Path) -> dict[str, bool]:
    names = sorted(str(path.relative_to(one)) for path in _lasting_files(one))
    return {name: (other / name).is_file() and sha256_of(one / name) == sha256_of(other / name) for name in names}


def _lasting_files(project: Path) -> list[Path]:
    bundles = [path for path in (project / "dist").rglob("*") if path.is_file() and path.name not in HOLD_TIMES]
    return bundles + list((project / ".kdpipe" / "store").rglob("*.safetensors"))


def _build(project: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "kdpipe.pipeline", "build", "--project", str(project), "--target", "cpu", "--target", "arm"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(project / "log.txt").open("ab"))


def _require_success(exit_code: int, project: Path) -> None:
    if exit_code != 0:
        sys.exit(f"the build ended with {exit_code}:\n{(project / 'log.txt').read_text()[-3000:]}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "examples/digits/kdpipe.toml")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
