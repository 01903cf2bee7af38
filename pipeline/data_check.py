"""`kdpipe data check` and `kdpipe data clean`, as functions: the project's data inspected, the sheet to look at, the manifest that leaves things out.

A check is kept in `.kdpipe/data/check-<digest>.json`: the build's report tells of the one that is for its data, and `clean` starts from it.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import told_disk_errors
from kdpipe.pipeline.building import BUNDLES
from kdpipe.pipeline.config import DEFAULT_TASK, FILE, read_config, task_model
from kdpipe.pipeline.kept_check import keep, kept_path, known_check
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.report.data_sheet import write_sheet
from kdpipe.pipeline.stages import load_stages
from kdpipe.pipeline.user_code import importable
from kdpipe.tasks.data.cleaning import Manifest, Wanted, cleaned_digest, cleaned_splits, decided, kept_and_labels, read_manifest, write_manifest
from kdpipe.tasks.data.inspection.findings import SPLITS, Inspection, SplitName
from kdpipe.tasks.data.partition import Drawn, cleaned_of
from kdpipe.tasks.data.samples import FileSamples, RowsSplit
from kdpipe.tasks.data.splits import DataSplits, Split

if TYPE_CHECKING:
    from kdpipe.stages.stage import Progress
    from kdpipe.tasks.data.inspection.inspection import Checked

SHEET = "data-report.html"
MANIFEST = "cleaned.json"

_OWN_SOURCES = ("safe", "--drop-suspected", "--relabel")


@dataclass(frozen=True)
class CheckResult:
    """`sheet`: the page to look at. `kept`: where the check is kept for report and cleaning; None where there is no project."""

    inspection: Inspection
    sheet: Path
    kept: Path | None


@dataclass(frozen=True)
class CleanResult:
    """`manifest` as written to `path`; `digest`: of the data once they are cleaned by it; `in_use`: whether `kdpipe.toml` names it."""

    manifest: Manifest
    path: Path
    digest: str
    in_use: bool


@dataclass(frozen=True)
class _Project:
    folder: Path
    name: str
    task: Any
    seed: int
    configured: bool


def check(
    project: Path | str = ".",
    *,
    data: str | None = None,
    overrides: Sequence[str] = (),
    labels: bool = True,
    sheet: Path | None = None,
    progress: "Progress | None" = None,
) -> CheckResult:
    """The findings in the project's data, as a build would use them (`[task] cleaned` applied), or in `data`, what `[task] data` may say, without a project.

    `labels`: whether labels are suspected, which takes most of the time. `sheet`: where the page is written.
    """
    folder = _folder(project)
    with importable(folder):
        described = _project(folder, data, overrides)
        loaded = described.task.uncleaned(folder, described.seed)
        if described.task.cleaned is not None:
            loaded = _cleaned(loaded, folder / described.task.cleaned)
        checked = _checked(loaded, folder)
        inspection = _inspected(described, checked, labels, progress)
        kept = kept_path(folder, inspection.digest) if described.configured else None
        if kept is not None:
            keep(inspection, folder)
        place = sheet or (folder / BUNDLES / described.name / SHEET if described.configured else folder / SHEET)
        with told_disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        return CheckResult(inspection, write_sheet(place, inspection, checked.splits, project=described.name), kept)


def clean(
    project: Path | str = ".",
    *,
    wanted: Wanted | None = None,
    overrides: Sequence[str] = (),
    out: str = MANIFEST,
    undo: bool = False,
    dry_run: bool = False,
    progress: "Progress | None" = None,
) -> CleanResult:
    """Write the manifest of what is left out or relabelled of the project's original data; nothing else is changed.

    Starts from the kept check of these data, or makes one. Decisions that a person added to the manifest stay. `undo`: a manifest
    without decisions, with which the data's digest is that of the original. ConfigError where a class would lose all samples of a split.
    """
    folder = _folder(project)
    with importable(folder):
        described = _project(folder, None, overrides)
        checked = _checked(described.task.uncleaned(folder, described.seed), folder)
        path = folder / out
        if undo:
            manifest = Manifest(name=checked.name, digest=checked.digest)
        else:
            manifest = _with_own_decisions(decided(_known_or_new(described, checked, wanted or Wanted(), progress), wanted or Wanted()), path)
        _require_every_class(manifest, checked, path)
        if not dry_run:
            write_manifest(manifest, path)
        in_use = described.task.cleaned is not None and (folder / described.task.cleaned).resolve() == path.resolve()
        return CleanResult(manifest, path, cleaned_digest(checked.digest, manifest), in_use)


def _folder(project: Path | str) -> Path:
    folder = Path(project).resolve()
    if not folder.is_dir():
        raise ConfigError("no such folder", at=folder, do="give the project's folder")
    return folder


def _project(folder: Path, data: str | None, overrides: Sequence[str]) -> _Project:
    if data is not None:
        model = task_model(DEFAULT_TASK, at="--data")
        return _Project(folder, Path(data).stem or "data", model.model_validate({"data": data}), 0, configured=False)
    if not (folder / FILE).is_file():
        raise ConfigError(f"no {FILE} here", at=folder, do="write one with: kdpipe init; or name the data: kdpipe data check --data PATH")
    config = read_config(folder, load_stages(), settings=overrides)
    if not hasattr(config.task, "uncleaned"):
        raise ConfigError(f"the data of a task {config.task_kind!r} cannot be checked", at="[task] kind", do="known: image-classification")
    return _Project(folder, config.name, config.task, config.seed, configured=True)


def _cleaned(loaded: Drawn | DataSplits, path: Path) -> Drawn | DataSplits:
    return cleaned_splits(loaded, path) if isinstance(loaded, DataSplits) else cleaned_of(loaded, path)


def _checked(loaded: Drawn | DataSplits, folder: Path) -> "Checked":
    from kdpipe.tasks.data.inspection.inspection import Checked

    splits: Mapping[SplitName, Split]
    if isinstance(loaded, DataSplits):
        splits, at = {"train": loaded.train, "validation": loaded.validation, "test": loaded.test}, {}
    else:
        splits, at = loaded.splits, dict(loaded.at)

    def place(name: SplitName, index: int) -> str:
        split = splits[name]
        if not isinstance(split, RowsSplit):
            return f"sample {index} of {name}"
        row = int(split.rows[index])
        if isinstance(split.samples, FileSamples):
            return _short(split.samples.folder / split.samples.names[row], folder)
        return f"image {row} of {at[name].rpartition('/')[2]}"

    return Checked(loaded.name, loaded.digest, loaded.classes, loaded.shape, splits, place)


def _short(path: Path, folder: Path) -> str:
    absolute = path.absolute()  # not resolved: a link is told by its own name
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(path)


def _inspected(described: _Project, checked: "Checked", labels: bool, progress: "Progress | None") -> Inspection:
    from kdpipe.tasks.data.inspection.inspection import inspected

    say = progress or SilentProgress()

    def counted(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        return say(items, label, total=total, unit="step")

    scratch = kept_path(described.folder, "").parent if described.configured else Path(tempfile.gettempdir())
    with told_disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        return inspected(checked, scratch, counted, labels=labels)


def _known_or_new(described: _Project, checked: "Checked", wanted: Wanted, progress: "Progress | None") -> Inspection:
    """The kept check of the original data, if it looked at labels where they matter."""
    known = known_check(described.folder, checked.digest)
    if known is not None and (wanted.suspected == "keep" or known.label_model is not None):
        return known
    made = _inspected(described, checked, wanted.suspected != "keep", progress)
    if known is None or made.label_model is not None:
        keep(made, described.folder)
    if wanted.suspected != "keep" and made.label_model is None:
        raise ConfigError("no label could be suspected: " + "; ".join(made.skipped), at=checked.name, do="run kdpipe data clean without that option")
    return made


def _with_own_decisions(manifest: Manifest, path: Path) -> Manifest:
    """The manifest, with what a person decided in the one at `path`, if that is for the same data; a person's word goes first."""
    if not path.is_file():
        return manifest
    old = read_manifest(path)
    own = {(it.split, it.index): it for it in old.decisions if it.source not in _OWN_SOURCES}
    if not own or old.digest != manifest.digest:
        return manifest
    merged = {(it.split, it.index): it for it in manifest.decisions} | own
    ordered = sorted(merged.values(), key=lambda it: (SPLITS.index(it.split), it.index))
    return manifest.model_copy(update={"decisions": tuple(ordered)})


def _require_every_class(manifest: Manifest, checked: "Checked", path: Path) -> None:
    for name, split in checked.splits.items():
        _, labels = kept_and_labels(manifest, name, split.labels)
        empty = np.flatnonzero(np.bincount(labels, minlength=len(checked.classes)) == 0)
        if len(empty):
            raise ConfigError(
                f"nothing of class {checked.classes[empty[0]]!r} would be left in {name}",
                at=path,
                do="raise --least-margin, or leave the suspected labels: run it without --drop-suspected and --relabel",
            )
