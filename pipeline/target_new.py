"""`kdpipe targets new`: a profile of your own, commented, on top of one that ships or of another file."""

import os
from pathlib import Path

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.targets.profile import Profile, load_profile, profile_names

_TEXT = """\
# {name}: everything of {extends}, but for what stands here. `kdpipe targets show {file}` tells each key and where it comes from.
# Take the # from a line to change it; the values are those of {extends}. All keys: docs/targets.md.
extends = "{extends}"
title = {title}

# opset = {opset}              # of the exported file, within {low} and {high}
# batch = "{batch}"          # static: one batch size, every shape fixed; dynamic: any
# static_batch = {static_batch}
# keep_float = [{keep_float}]   # operators that are not quantized
# forbidden = []          # operators that your chip does not run; the list takes the place of the one of {extends}

# [instruction_sets]
# needs = [{needs}]        # without all of these nothing is measured
# fast_on = [{fast_on}]      # one of these makes int8 clearly faster than float
# exact_on = [{exact_on}]   # a host with one of these computes the file as the chip does

# [scheme]
# activation_bits = {activation_bits}
# activation_signed = {activation_signed}
# activation_symmetric = {activation_symmetric}  # zero point 0
# weight_bits = {weight_bits}
# weight_granularity = "{weight_granularity}"

# [calibration]
# samples = {samples}
# method = "{method}"      # minmax, percentile or mse

# [bench]
# threads = {threads}
# seconds = {seconds}          # measured time of one comparison; take 10 for a figure that you publish
"""


def new(name: str, *, extends: str, folder: Path) -> Path:
    """Write `NAME.toml` in `folder`, checked; returns its path. A file that is there is never replaced.

    `extends`: a profile that ships, or the path of a .toml relative to `folder`. Raises ConfigError (name taken or not a file's name, unknown
    profile), UnavailableError (the disk refuses).
    """
    stem = name.removesuffix(".toml")
    if not stem or Path(stem).name != stem or stem.startswith(".") or any(not (letter.isalnum() or letter in "-_.") for letter in stem):
        raise ConfigError(
            f"{name!r} is not a name for a profile", at="kdpipe targets new", do="letters, digits, '-' and '_', e.g. kdpipe targets new board --extends arm"
        )
    if stem in profile_names():
        raise ConfigError(f"{stem!r} is a profile that ships", at="kdpipe targets new", do=f"take another name, e.g. my-{stem}")
    path = folder / f"{stem}.toml"
    base = folder / extends if extends.endswith(".toml") else extends
    text = _text(stem, path.name, extends, load_profile(base, at="--extends"))
    try:
        with path.open("x", encoding="utf-8") as file:  # fails where it is there, also when two write at once
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise ConfigError("a profile of this name is there", at=path, do="take another name, or edit it") from error
    except FileNotFoundError as error:
        raise ConfigError("no such folder", at=folder, do="make it first, or give another --folder") from error
    except OSError as error:
        raise UnavailableError(f"the profile cannot be written: {error.strerror}", at=path, do="check permissions and free space") from error
    load_profile(path, at="kdpipe targets new")
    return path


def _text(name: str, file: str, extends: str, base: Profile) -> str:
    scheme, bench, sets = base.scheme, base.bench, base.instruction_sets
    return _TEXT.format(
        name=name,
        file=file,
        extends=extends,
        title=_quoted(f"{name}, as {extends}"),
        opset=base.opset,
        low=base.opset_range[0],
        high=base.opset_range[1],
        batch=base.batch,
        static_batch=base.static_batch,
        keep_float=_listed(base.keep_float),
        needs=_listed(sets.needs),
        fast_on=_listed(sets.fast_on),
        exact_on=_listed(sets.exact_on),
        activation_bits=scheme.activation_bits,
        activation_signed=_toml(scheme.activation_signed),
        activation_symmetric=_toml(scheme.activation_symmetric),
        weight_bits=scheme.weight_bits,
        weight_granularity=scheme.weight_granularity,
        samples=base.calibration.samples,
        method=base.calibration.method,
        threads=f"[{', '.join(_quoted(count) if isinstance(count, str) else str(count) for count in bench.threads)}]",
        seconds=bench.seconds,
    )


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(_quoted(value) for value in values)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _toml(value: bool) -> str:
    return "true" if value else "false"
