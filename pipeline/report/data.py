"""What the build's report says of its data: the check that was made of them, and what a manifest leaves out of them."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from kdpipe.pipeline.kept_check import known_check
from kdpipe.pipeline.report.data_sheet import SummaryRow, headline, summary_rows
from kdpipe.pipeline.steps import BuildResult
from kdpipe.tasks.data.cleaning import Manifest, cleaned_digest


@dataclass(frozen=True)
class DataSection:
    """`checked`: whether a check of exactly these data is kept. `cleaned`: what the manifest does, in words; empty without one."""

    checked: bool
    headline: str
    rows: tuple[SummaryRow, ...]
    cleaned: str


def data_section(build: BuildResult) -> DataSection | None:
    """The section for the data that the build used, by their digest; None where they were neither checked nor cleaned."""
    digest = next((str(result.step.identity["data"]) for result in build.results.values() if result.step.identity.get("data")), None)
    if digest is None:
        return None
    cleaned = _cleaned(build, digest)
    found = known_check(build.project, digest)
    if found is None:
        return DataSection(False, "", (), cleaned) if cleaned else None
    return DataSection(True, headline(found)[0], tuple(summary_rows(found)), cleaned)


def _cleaned(build: BuildResult, digest: str) -> str:
    """What the manifest that `[task] cleaned` names does, if it is still the one that the data were cleaned by."""
    named = build.config.get("task", {}).get("cleaned")
    if not named:
        return ""
    manifest = _manifest(build.project / named)
    if manifest is None or cleaned_digest(manifest.digest, manifest) != digest:
        return f"{named} has changed since the build."
    dropped = Counter(it.split for it in manifest.decisions if it.label is None)
    relabelled = Counter(it.split for it in manifest.decisions if it.label is not None)
    told = [f"{count:,} left out of {split}" for split, count in dropped.items()] + [f"{count:,} relabelled in {split}" for split, count in relabelled.items()]
    reasons = ", ".join(sorted({it.why for it in manifest.decisions}))
    return f"Cleaned by {named}: {', '.join(told)} ({reasons})." if told else f"{named} leaves nothing out."


def _manifest(path: Path) -> Manifest | None:
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
