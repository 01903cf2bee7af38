"""The bundle: the folder that is handed over, `dist/<project>/<target>/`, with the model file, its contract and its evidence.

Equal builds give equal bytes in `model.onnx` (`model.xml`, `model.bin`), `contract.json`, `scorecard.json`, `answers.npz` and `predict.py`.
What was timed differs from run to run: `bench.json`, `report.html`, and with their digests `manifest.json`.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import told_disk_errors, write_bytes, write_json, write_text
from kdpipe.pipeline.answers import ANSWERS_FILE, shipped_answers
from kdpipe.pipeline.budgets import MODEL_FORMS, Verdict
from kdpipe.pipeline.manifest import MANIFEST_FILE, manifest
from kdpipe.pipeline.report.render import write_report
from kdpipe.pipeline.results import read_results
from kdpipe.pipeline.steps import BuildResult
from kdpipe.stages.device_quality import QUALITY_FILE, DeviceQualities


def write_bundle(build: BuildResult, target: str, verdicts: Sequence[Verdict], destination: Path) -> Path:
    """Write the bundle of `target` as the folder `destination`, whole or not at all; one that is there is replaced. Returns `destination`.

    Two writers of one bundle must be kept apart by the caller. Raises ConfigError where the build ended before the
    target's file was judged, UnavailableError where the disk refuses; the old bundle then stays.
    """
    results = read_results(build)
    tail = results.targets[target]
    if tail.export is None or tail.bench is None or not tail.files:
        raise ConfigError(f"there is no bundle of {target!r} before its last stage", at=destination, do="build without --until")
    with replacing(destination) as folder:
        for name in (*(name for names in MODEL_FORMS.values() for name in names), "contract.json"):
            if (tail.export / name).is_file():
                write_bytes(folder / name, (tail.export / name).read_bytes())
        judged = [it for it in results.judged if it.target in (None, target)]
        write_json(folder / "scorecard.json", {"scorecards": [it.card.model_dump(mode="json") for it in judged]})
        write_bytes(folder / ANSWERS_FILE, shipped_answers(build.results[f"score-export@{target}"].folder))
        write_text(folder / "bench.json", tail.bench.model_dump_json(indent=2) + "\n")
        if tail.on_devices:
            qualities = DeviceQualities(qualities=tuple(it.quality for it in tail.on_devices))
            write_text(folder / QUALITY_FILE, qualities.model_dump_json(indent=2) + "\n")
        write_bytes(folder / "predict.py", files("kdpipe.pipeline").joinpath("predict.py").read_bytes())
        write_report(build, verdicts, folder / "report.html", target)
        write_json(folder / MANIFEST_FILE, manifest(build, target, folder))
    return destination


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """A new empty folder beside `destination` that takes its place when all went well, and is removed when not."""
    partial, old = (destination.with_name(f".{destination.name}.{word}") for word in ("partial", "old"))
    with told_disk_errors(destination):
        if old.exists() and not destination.exists():  # a writer was killed between the two renames
            old.rename(destination)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            _swap(partial, destination, old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, destination: Path, old: Path) -> None:
    if destination.exists():
        destination.rename(old)
    try:
        partial.rename(destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
