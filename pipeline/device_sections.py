"""`[devices.NAME]`: each section becomes the settings of its kind. Apart from the rest of the configuration, which needs the stages and so torch."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.foundation.plugins import find, names
from kdpipe.pipeline.problems import Section, checked
from kdpipe.pipeline.toml_source import KeyPath, TomlSource, read_toml
from kdpipe.targets.devices.device import PACKAGE as DEVICES
from kdpipe.targets.devices.device import Settings as DeviceSettings

FILE = "kdpipe.toml"
DEFAULT_DEVICE = "local"
HOST = "host"  # how a command names the machine that it runs on
DEFAULT_TARGET = "cpu"
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST_NAME = 100
FOLDER_NAME_RULE = f"up to {LONGEST_NAME} letters, digits, '.', '_' and '-', the first a letter or digit"


def device_kinds() -> list[str]:
    """The kinds of devices that ship."""
    return names(DEVICES)


def device_model(kind: str, *, at: str) -> type[BaseModel]:
    """The model of `[devices.NAME]` for this kind; ConfigError where there is none."""
    if ":" not in kind and kind not in device_kinds():
        near = difflib.get_close_matches(kind, device_kinds(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError("there is no such kind of device", at=at, do=f"{hint}known: {', '.join(device_kinds())}; your own: package.module:Class")
    model = find(DEVICES, kind, at=at)
    if not (isinstance(model, type) and issubclass(model, BaseModel) and hasattr(model, "device")):
        raise ConfigError("it is not a kind of device", at=at, do="name a pydantic model that is a kdpipe.targets.devices.device.Settings")
    return model


def is_this_host(name: str, project: Path) -> bool:
    """Whether a command's `name` is the machine that it runs on: `host`, where the project calls no device so."""
    return name == HOST and HOST not in read_devices(project)


def read_devices(project: Path) -> dict[str, DeviceSettings]:
    """The devices of the project alone, by name; ConfigError with every problem of their sections. Empty where there is no kdpipe.toml."""
    path = project / FILE
    source = read_toml(path) if path.is_file() else None
    devices, problems = devices_of(source.values.get("devices", {}), source) if source else ({}, [])
    if problems:
        raise ConfigError.gather(problems)
    return devices


def devices_of(values: Any, source: TomlSource) -> tuple[dict[str, DeviceSettings], list[Problem]]:
    """The devices in the value of `devices`, and all that is wrong with the others."""
    tables, problems = tables_of(values, ("devices",), source)
    devices = {}
    for name, table in tables.items():
        path: KeyPath = ("devices", name)
        kind = table.get("kind", DEFAULT_DEVICE)
        place = source.at((*path, "kind"))
        if not re.fullmatch(FOLDER_NAME, name) or len(name) > LONGEST_NAME:
            problems.append(Problem(f"a device cannot be called {name!r}", source.at(path), f"its record is a file of that name: {FOLDER_NAME_RULE}"))
            continue
        try:
            model = device_model(str(kind), at=place)
        except ConfigError as error:
            problems += [Problem(f"kind = {kind!r}: {problem.message}", place, problem.do) for problem in error.problems]
            continue
        rest = table if "kind" in model.model_fields else {key: value for key, value in table.items() if key != "kind"}
        device, found = checked(model, rest, Section(path, source))
        problems += found
        if device is not None:
            devices[name] = cast("DeviceSettings", device)
    return devices, problems


def tables_of(values: Any, path: KeyPath, source: TomlSource) -> tuple[dict[str, Any], list[Problem]]:
    """The sub-tables of `[targets]` or `[devices]` by name."""
    if not isinstance(values, Mapping):
        return {}, checked(BaseModel, values, Section(path, source))[1]
    wrong = [name for name, table in values.items() if not isinstance(table, Mapping)]
    problems = [Problem(f"{name} = … stands in [{path[0]}] itself", source.at((*path, name)), f"write it below [{path[0]}.NAME]") for name in wrong]
    return {name: table for name, table in values.items() if name not in wrong}, problems
