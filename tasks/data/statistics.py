"""Mean and standard deviation of each channel over the training split; reading it all is also the proof that it can be read.

Sets that must be decoded for this are remembered by their content's digest, so that a later start does not decode again.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.files import write_json
from kdpipe.tasks.data.samples import CHUNK_ROWS, Pixels, RowsSplit, chunks

_log = logging.getLogger(__name__)
_LEVELS = 256
_DECODED_ROWS = CHUNK_ROWS // 4  # encoded images may be large


class Statistics(BaseModel, extra="forbid", frozen=True):
    """Per channel, of values in [0, 1]; the population's deviation (divided by n)."""

    mean: tuple[float, ...]
    std: tuple[float, ...] = Field(description="above 0")


def statistics(splits: Mapping[str, RowsSplit], digest: str, *, cache: Path | None, at: str) -> Statistics:
    """The training split's statistics. All images of all splits have then been decoded once: ConfigError names a damaged one.

    `cache`: the folder where the figures of encoded sets are kept under `digest`; None keeps nothing.
    """
    train = splits["train"]
    if train.samples.storage != "file" or cache is None:
        return _measured(splits, at=at)
    path = cache / f"{digest}.json"
    known = _known(path)
    if known is None:
        known = _measured(splits, at=at)
        _keep(known, path)
    return known


def channel_statistics(split: RowsSplit) -> Statistics:
    """Mean and deviation per channel in one pass: exact counts for uint8, float64 sums for float32."""
    channels = split.samples.shape[0]
    sums = np.zeros((2, channels), np.float64)
    count = 0
    for rows in chunks(split.rows, _DECODED_ROWS):
        pixels = split.samples.pixels(rows)
        sums += _sums(pixels)
        count += pixels.size // channels
    mean = sums[0] / count
    std = np.sqrt(np.maximum(sums[1] / count - mean**2, 0))
    return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _sums(pixels: Pixels) -> npt.NDArray[np.float64]:
    """The sums of values and of squares per channel, (2, channels), for values in [0, 1]."""
    by_channel = [pixels[:, channel].ravel() for channel in range(pixels.shape[1])]
    if pixels.dtype == np.uint8:
        levels = np.arange(_LEVELS) / (_LEVELS - 1)
        counts = np.stack([np.bincount(values, minlength=_LEVELS) for values in by_channel], axis=1)
        return np.stack([levels @ counts, levels**2 @ counts])
    wide = [values.astype(np.float64) for values in by_channel]
    return np.array([[values.sum() for values in wide], [values @ values for values in wide]])


def _measured(splits: Mapping[str, RowsSplit], *, at: str) -> Statistics:
    found = channel_statistics(splits["train"])
    constant = [channel for channel, std in enumerate(found.std) if std < 1e-6]
    if constant:
        raise ConfigError(f"all training images are of one value in channel {constant[0]}", at=at, do="check how the images were made")
    for name, split in splits.items():
        if name != "train" and split.samples.storage == "file":
            for rows in chunks(split.rows, _DECODED_ROWS):
                split.samples.pixels(rows)
    return found


def _known(path: Path) -> Statistics | None:
    if not path.is_file():
        return None
    try:
        return Statistics.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError):
        _log.info("statistics in %s cannot be read and are computed again", path)
        return None


def _keep(found: Statistics, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found.model_dump())
    except (OSError, UnavailableError) as error:
        _log.info("statistics are not kept for the next start: %s", error)
