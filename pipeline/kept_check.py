"""The last check of the project's data, by their digest: `.kdpipe/data/check-<digest>.json`."""

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from kdpipe.foundation.files import told_disk_errors, write_json
from kdpipe.pipeline.store import HOME
from kdpipe.tasks.data.inspection.findings import Inspection

_log = logging.getLogger(__name__)


def kept_path(project: Path, digest: str) -> Path:
    """Where the check of the data of this digest is kept."""
    return project / HOME / "data" / f"check-{digest}.json"


def keep(inspection: Inspection, project: Path) -> None:
    """Keep the check, in place of an earlier one of the same data."""
    path = kept_path(project, inspection.digest)
    with told_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, inspection.model_dump(mode="json"))


def known_check(project: Path, digest: str) -> Inspection | None:
    """The kept check of the data of this digest; None where there is none that can be read."""
    path = kept_path(project, digest)
    if not path.is_file():
        return None
    try:
        return Inspection.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        _log.info("the check in %s cannot be read; kdpipe data check makes it anew", path)
        return None
