"""What is known of a project's devices from the last time each was reached: `.kdpipe/devices/NAME.json`.

A build whose bench is in the store needs no device: what it was then is enough to find it. Whatever has to be measured
reaches the device first, and what has changed since is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from kdpipe.foundation.files import write_text
from kdpipe.pipeline.store import HOME
from kdpipe.targets.devices.device import Settings, changed, identity_of
from kdpipe.targets.measurements import DeviceFacts

FOLDER = "devices"


class DeviceRecord(BaseModel, extra="forbid", frozen=True):
    """`settings`: the section of kdpipe.toml that led to the device; `seen`: when, UTC, ISO 8601."""

    settings: dict[str, JsonValue]
    facts: DeviceFacts
    seen: str


@dataclass(frozen=True)
class Seen:
    """A device that was reached now. `changes`: since the record, empty where there was none or nothing changed."""

    facts: DeviceFacts
    changes: tuple[str, ...]


def record_of(project: Path, name: str, settings: Settings) -> DeviceRecord | None:
    """What was recorded of the device with these settings; None where nothing was, or its section now leads elsewhere."""
    try:
        record = DeviceRecord.model_validate_json(_path(project, name).read_bytes())
    except (OSError, ValidationError):
        return None  # a record is only a memory: without it the device is reached
    return record if record.settings == dumped(settings) else None


def seen_now(project: Path, name: str, settings: Settings) -> Seen:
    """Reach the device, and hold it against its record. Raises UnavailableError where it is not reached; writes nothing."""
    record = record_of(project, name, settings)
    facts = settings.device(name, project).facts()
    return Seen(facts, changed(identity_of(record.facts), identity_of(facts)) if record else ())


def keep(project: Path, name: str, settings: Settings, facts: DeviceFacts) -> None:
    """Write the record. One that says the same but for time, clock and temperature is left as it is, so that nothing seems to have changed."""
    record = record_of(project, name, settings)
    if record is None or identity_of(record.facts) != identity_of(facts):
        _path(project, name).parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(_path(project, name), DeviceRecord(settings=dumped(settings), facts=facts, seen=now).model_dump_json(indent=2) + "\n")


def forget(project: Path, name: str) -> None:
    """Remove the record, if there is one."""
    _path(project, name).unlink(missing_ok=True)


def dumped(settings: Settings) -> dict[str, JsonValue]:
    """The section as JSON, as it is written into bundles: without the path of a private key."""
    assert isinstance(settings, BaseModel)
    content: Mapping[str, JsonValue] = settings.model_dump(mode="json", exclude={"identity_file"}, exclude_none=True)
    return dict(content)


def _path(project: Path, name: str) -> Path:
    return project / HOME / FOLDER / f"{name}.json"
