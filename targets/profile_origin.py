"""Which file each key of a profile comes from, where profiles extend each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdpipe.targets.profile import Profile, profile_layers

DEFAULT = "default"


def origins(name_or_path: str | Path, profile: Profile, *, at: str) -> dict[str, str]:
    """Key (`scheme.weight_bits`) to the name of the file that gives it, in the order of the profile; `default` where none does.

    `profile`: that same profile, loaded; lists count as one key. ConfigError as `load_profile`.
    """
    given: dict[str, str] = {}
    layers = profile_layers(name_or_path, at=at)
    for path, keys in layers:
        given |= dict.fromkeys((key for key, _ in _flat(keys)), path.name)
    given.setdefault("name", layers[-1][0].name)  # a profile without a name is called what its file is
    return {key: given.get(key, DEFAULT) for key, _ in flat_values(profile)}


def flat_values(profile: Profile) -> Iterator[tuple[str, Any]]:
    """Key and value of the resolved profile, tables as dotted keys; without what is absent."""
    yield from ((key, value) for key, value in _flat(profile.model_dump(mode="json")) if value is not None)


def _flat(keys: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in keys.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        elif not isinstance(value, Mapping):
            yield before + key, value
