"""Devices written into and taken out of `kdpipe.toml`, their host keys pinned, their userlands prepared; and what a device is checked for."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, ValidationError

from kdpipe.foundation.errors import ConfigError, KdpipeError, UnavailableError
from kdpipe.foundation.files import write_text
from kdpipe.pipeline.device_records import Seen, forget, keep, record_of, seen_now
from kdpipe.pipeline.device_sections import FILE, HOST, device_model, is_this_host, read_devices
from kdpipe.pipeline.variants import AUTO, implied_by
from kdpipe.targets.devices.device import Device, Settings, why_no_latency
from kdpipe.targets.devices.emulated import CPUS, Emulated, require_emulator
from kdpipe.targets.devices.local import Local
from kdpipe.targets.devices.ssh import KNOWN_HOSTS, SshDevice, fingerprint
from kdpipe.targets.devices.userland import PYTHON, cache_folder, prepare
from kdpipe.targets.instruction_sets import ARCHITECTURES
from kdpipe.targets.measurements import DeviceFacts
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import what_helps

HOT_CELSIUS = 70.0
ROOM_BYTES = 200_000_000
STEADY_GOVERNOR = "performance"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Confirm = Callable[[str], bool]
"""asks the user a question about a fingerprint; whether the answer was yes"""


@dataclass(frozen=True)
class Check:
    """One thing a device is checked for. `ok` None: worth knowing, not wrong. `do`: what mends it."""

    name: str
    ok: bool | None
    told: str
    do: str | None = None


def add(project: Path, name: str, given: Mapping[str, Any], *, replace: bool, confirm: Confirm, say: Callable[[str], None]) -> DeviceFacts:
    """Make the device ready, reach it once, then write its section (`given`, empty: it is in the file already). The facts that it told.

    `replace`: another section, host key or userland may take the place of the one that is there. Nothing is written unless the device answered.
    Raises ConfigError for a name or keys that cannot be used, UnavailableError where the device is not reached or its key is not confirmed.
    """
    path = _toml(project)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a device cannot be called {name!r}", at="kdpipe devices add", do="up to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    before = read_devices(project).get(name)
    if given:
        settings = _settings(name, given)
        if before is not None and before != settings and not replace:
            raise ConfigError(f"there is a device {name!r} already, with other settings", at=path, do=f"kdpipe devices rm {name}, another name, or --replace")
    elif before is not None:
        settings = before
    else:
        raise ConfigError(f"there is no device {name!r} yet", at=path, do="say how it is reached: --host USER@HOST, or --cpu cortex-a72 for an emulated one")
    device = settings.device(name, project)
    if isinstance(device, SshDevice):
        with _pinned(device, replace=replace, confirm=confirm, say=say):
            facts = device.facts()
    else:
        if isinstance(settings, Emulated):
            _make_ready(settings, project, replace=replace, say=say)
        facts = device.facts()
    if before != settings:
        if before is not None:
            write_text(path, without_section(path.read_text(encoding="utf-8"), name, at=path))
        write_text(path, with_section(path.read_text(encoding="utf-8"), name, given))
    keep(project, name, settings, facts)
    return facts


def remove(project: Path, name: str) -> None:
    """Take the device out of the file, with its pinned key and its record. ConfigError where there is none, or a target still names it."""
    path = _toml(project)
    settings = require_device(project, name)
    users = [target for target, table in _targets(project).items() if name == table.get("device") or name in _judges(table)]
    if users:
        raise ConfigError(f"device {name!r} is in use", at=path, do=f"take it out of {', '.join(f'[targets.{target}]' for target in users)} first")
    write_text(path, without_section(path.read_text(encoding="utf-8"), name, at=path))
    device = settings.device(name, project)
    if isinstance(device, SshDevice):
        device.pin(None)
    forget(project, name)


def probe(project: Path, name: str) -> Seen:
    """The device now, and what changed since it was last reached; the record is written anew. `host`: this machine, of which none is kept."""
    settings = _device_or_host(project, name)
    seen = seen_now(project, name, settings)
    if name in read_devices(project):
        keep(project, name, settings, seen.facts)
    return seen


def clean(project: Path, name: str) -> str:
    """Empty what the device keeps; in words. A board keeps nothing but what a killed keeper left; an emulated CPU its programs, on this host.

    Raises ConfigError where there is no such device, UnavailableError where it is not reached.
    """
    settings = require_device(project, name)
    device = settings.device(name, project)
    if isinstance(device, SshDevice):
        with device.connected():
            removed = device.link().ready.removed
        return f"{removed} folder{'s' if removed != 1 else ''} of broken connections removed" if removed else "nothing was left behind there"
    if not isinstance(settings, Emulated):
        return "it keeps nothing"
    folders = [*cache_folder("prefixes").glob(f"{settings.folder(project).name}-*")]
    folders += [settings.folder(project)] if settings.userland is None else []
    found = [folder for folder in folders if folder.is_dir()]
    size = sum(path.lstat().st_size for folder in found for path in folder.rglob("*") if not path.is_symlink())
    for folder in found:
        shutil.rmtree(folder)
    return f"{size / 1e6:.0f} MB of the emulator removed; kdpipe devices add {name} prepares them again" if found else "nothing is prepared for it"


def require_device(project: Path, name: str) -> Settings:
    """The device's section; ConfigError where there is none."""
    devices = read_devices(project)
    if name not in devices:
        raise ConfigError(f"unknown device {name!r}", at=project / FILE, do=f"devices: {', '.join(devices) or 'none yet'}; kdpipe devices add {name} makes one")
    return devices[name]


def _device_or_host(project: Path, name: str) -> Settings:
    """The device's section; for `host`, where no device is called so, this machine."""
    return Local() if is_this_host(name, project) else require_device(project, name)


def examine(project: Path, name: str) -> Iterator[Check]:
    """Everything a measurement needs, in the order in which it is needed; ends at the first thing without which nothing further can be told."""
    settings = _device_or_host(project, name)
    device = settings.device(name, project)
    try:
        if isinstance(device, SshDevice):
            yield from _ssh_checks(device)
        elif isinstance(settings, Emulated):
            emulator = require_emulator(CPUS[settings.cpu].architecture, at=f"device {name}")
            yield Check("emulator", True, emulator)
        with device.connected():
            facts = device.facts()
            if isinstance(device, SshDevice):
                yield from _keeper_checks(device)
        yield Check("agent", True, f"answers with Python {facts.runtimes.get('python')} and numpy {facts.runtimes.get('numpy')}")
    except KdpipeError as error:
        problem = error.problems[0]
        yield Check("reached", False, problem.message, problem.do)
        return
    yield from _runtime_checks(project, name, facts)
    yield from _machine_checks(device, facts)
    record = record_of(project, name, settings)
    changes = seen_now_from(record.facts, facts) if record else ()
    yield Check(
        "unchanged",
        None if changes else True,
        "; ".join(changes) if changes else "as it was when it was last reached",
        f"kdpipe devices probe {name}" if changes else None,
    )


def likely_target(facts: DeviceFacts) -> str:
    """The profile that ships for a machine of this architecture."""
    return "arm" if ARCHITECTURES.get(facts.architecture.lower()) == "aarch64" else "cpu"


def seen_now_from(before: DeviceFacts, now: DeviceFacts) -> tuple[str, ...]:
    """What differs between two looks at a device."""
    from kdpipe.targets.devices.device import changed, identity_of

    return changed(identity_of(before), identity_of(now))


def with_section(text: str, name: str, values: Mapping[str, Any]) -> str:
    """The text of a kdpipe.toml with `[devices.NAME]` at its end."""
    lines = [f"[devices.{_key(name)}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())]
    return f"{text.rstrip()}\n\n" * bool(text.strip()) + "\n".join(lines) + "\n"


def without_section(text: str, name: str, *, at: Path) -> str:
    """The text without `[devices.NAME]`; ConfigError where it cannot be cut out without changing anything else."""
    headers = {f"[devices.{name}]", f'[devices."{name}"]', f"[devices.'{name}']"}
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        start = line.split("#", 1)[0].strip()
        if start.startswith("["):
            inside = start.replace(" ", "") in headers
        if not inside:
            kept.append(line)
    wanted = tomllib.loads(text)
    wanted.get("devices", {}).pop(name, None)
    if not wanted.get("devices"):
        wanted.pop("devices", None)
    result = "".join(kept).rstrip() + "\n"
    if tomllib.loads(result) != wanted:
        raise ConfigError(f"[devices.{name}] cannot be taken out of the file without touching the rest", at=at, do="remove its lines by hand")
    return result


class _pinned:  # noqa: N801  # reads as what it does: with _pinned(device)
    """The host key that the device presents is pinned after the user agreed; unpinned again when what follows fails."""

    def __init__(self, device: SshDevice, *, replace: bool, confirm: Confirm, say: Callable[[str], None]) -> None:
        self.device, self.replace, self.confirm, self.say = device, replace, confirm, say

    def __enter__(self) -> None:
        presented, self.before = self.device.presented_key(), self.device.pinned_key()
        host = self.device.settings.host
        if self.before is not None and self.before == presented:
            self.say(f"the host key of {host} is the pinned one: {fingerprint(presented)}")
            return
        if self.before is not None and not self.replace:
            raise UnavailableError(
                f"the host key of {host} is not the one that was pinned: {fingerprint(presented)} instead of {fingerprint(self.before)}",
                at=self.device.project / KNOWN_HOSTS,
                do=f"if you know why: kdpipe devices add {self.device.name} --replace",
            )
        self.say(f"the host key of {host}: {fingerprint(presented)}")
        self.say("on the device, this tells whether it is the right one: for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done")
        if not self.confirm(fingerprint(presented)):
            raise UnavailableError(
                "the host key was not confirmed: nothing is pinned, nothing is written",
                at=f"device {self.device.name}",
                do="compare the fingerprints, then try again",
            )
        self.device.pin(presented)

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            self.device.pin(self.before)


def _make_ready(settings: Emulated, project: Path, *, replace: bool, say: Callable[[str], None]) -> None:
    architecture = CPUS[settings.cpu].architecture
    require_emulator(architecture, at=f"emulated {settings.cpu}")
    folder = settings.folder(project)
    if architecture == "aarch64" and settings.userland is None and (replace or not (folder / PYTHON).exists()):
        digests = prepare(folder, say)
        say(f"{folder}: {len(digests)} packages, their digests in userland.json")


def _settings(name: str, given: Mapping[str, Any]) -> Settings:
    host, colon, port = str(given.get("host", "")).partition(":")
    if colon and port.isdecimal():
        raise ConfigError(f"--host {host}:{port}: the port stands apart", at=f"kdpipe devices add {name}", do=f"--host {host} --port {port}")
    model = device_model(str(given["kind"]), at="--kind")
    try:
        built: Any = model.model_validate(given)
    except ValidationError as error:
        details = error.errors()[0]
        key = str(details["loc"][0]) if details["loc"] else "kind"
        option = f"--{key.replace('_', '-')}"
        known = ", ".join(f"--{field.replace('_', '-')}" for field in model.model_fields if field != "kind")
        kind = str(given["kind"])
        unknown = f"a device of the kind {kind} takes no {option}" if details["type"] == "extra_forbidden" else None
        raise ConfigError(
            unknown or f"{option}: {details['msg'].removeprefix('Value error, ')}",
            at=f"kdpipe devices add {name}",
            do=f"options of a device of this kind: {known}",
        ) from error
    assert isinstance(built, BaseModel)
    settings: Settings = built  # type: ignore[assignment]  # device_model has looked for what a Settings needs
    return settings


def _ssh_checks(device: SshDevice) -> Iterator[Check]:
    told = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.strip()
    yield Check("ssh client", True, told)
    pinned, presented = device.pinned_key(), device.presented_key()
    if pinned is None:
        yield Check("host key", False, f"not pinned; the machine presents {fingerprint(presented)}", f"kdpipe devices add {device.name}")
    elif pinned != presented:
        yield Check(
            "host key",
            False,
            f"{fingerprint(presented)} instead of the pinned {fingerprint(pinned)}",
            f"if you know why: kdpipe devices add {device.name} --replace",
        )
    else:
        yield Check("host key", True, f"{fingerprint(pinned)}, as pinned")


def _keeper_checks(device: SshDevice) -> Iterator[Check]:
    ready = device.link().ready
    yield Check("login", True, f"as {device.settings.host}, with Python {ready.python}; nobody else measures there")
    enough = ready.free_bytes >= ROOM_BYTES
    told = f"{ready.free_bytes / 1e6:,.0f} MB free for models"
    yield Check("room", True if enough else None, told, None if enough else "make room there, or name another folder: [devices.NAME] folder")
    off = device.link().clock_ahead_seconds
    set_well = abs(off) < 60
    yield Check(
        "clock",
        True if set_well else None,
        f"{off:+.0f} s from this host's" if round(off) else "as this host's",
        None if set_well else "let its time service set it (timedatectl); latencies do not hang on it",
    )


def _runtime_checks(project: Path, name: str, facts: DeviceFacts) -> Iterator[Check]:
    found = False
    here = is_this_host(name, project)
    for target, table in (_targets(project) if (project / FILE).is_file() or not here else {}).items():
        if table.get("device", HOST if here else None) != name and name not in _judges(table):
            continue
        named, own = implied_by(target) or (target, None)
        wanted = str(table.get("profile") or named)
        variant = None if table.get("variant") == AUTO else table.get("variant") or (None if table.get("profile") else own)
        profile = load_profile(project / wanted if wanted.endswith(".toml") else wanted, at=f"[targets.{target}]", variant=variant)
        found = True
        needs = profile.runtimes_on_device
        some = any(need.name in facts.runtimes for need in needs)  # the others are then left out, and that is said
        for need in needs:
            there = facts.runtimes.get(need.name)
            fits = there is not None and SpecifierSet(need.versions).contains(there, prereleases=True)
            helps = what_helps(need.name, need.versions)
            do = None if fits else f"in the device's Python: {helps}" if helps.startswith("python") else helps
            spared = there is None and some and (need.optional or profile.architecture is not None)
            told = f"{need.name} {there or 'is not installed'}{'' if fits or spared else f', {need.versions} is needed'}"
            yield Check(f"runtime of {target}", None if spared else fits, f"{told}: not measured in it" if spared else told, do)
        reason = profile.why_not_measurable(frozenset(facts.instruction_sets), where=f"device {name}", runtimes=facts.runtimes)
        yield Check(f"chip of {target}", None if reason else True, reason or f"it is one that {profile.name} is for")
    if not found:
        runtimes = {key: version for key, version in facts.runtimes.items() if key not in ("python", "numpy")}
        told = ", ".join(f"{key} {version}" for key, version in runtimes.items()) or "none is installed"
        yield Check("runtimes", bool(runtimes), told, None if runtimes else "in the device's Python: python -m pip install onnxruntime")
        if not here:
            yield Check("used", None, "no target names it", f'below [targets.{likely_target(facts)}] write device = "{name}"')


def _machine_checks(device: Device, facts: DeviceFacts) -> Iterator[Check]:
    no_latency = why_no_latency(device, facts)
    if no_latency is not None:
        yield Check("latency", None, no_latency)
        return
    steady = facts.governor in (None, STEADY_GOVERNOR)
    do = None if steady else "for steadier figures, on the device: sudo cpupower frequency-set -g performance"
    yield Check("governor", True if steady else None, facts.governor or "the machine has none that can be read", do)
    if facts.temperature_celsius is not None:
        cool = facts.temperature_celsius < HOT_CELSIUS
        yield Check(
            "temperature",
            True if cool else None,
            f"{facts.temperature_celsius:.0f} °C",
            None if cool else "let it cool, or cool it: a hot chip slows itself down",
        )


def _targets(project: Path) -> dict[str, Mapping[str, Any]]:
    """The sections of `[targets]` that are tables; what else is wrong with them is told by a build."""
    tables = tomllib.loads(_toml(project).read_text(encoding="utf-8")).get("targets", {})
    return {name: table for name, table in tables.items() if isinstance(table, Mapping)} if isinstance(tables, Mapping) else {}


def _judges(table: Mapping[str, Any]) -> Sequence[Any]:
    """What `accuracy_on` names."""
    named = table.get("accuracy_on", ())
    return named if isinstance(named, list) else ()


def _toml(project: Path) -> Path:
    path = project / FILE
    if not path.is_file():
        raise ConfigError(f"no {FILE} here", at=project, do="write one with: kdpipe init")
    return path


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else f'"{name}"'


def _toml_value(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    text = str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
