"""Mean and standard deviation of each channel over the training split; reading it all is also the proof that it can be read.

Sets that must be decoded for this are remembered by their content's digest, so that a later start does not decode again.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.files import write_json
from kdpipe.tasks.data.inspection.findings import SplitName
from kdpipe.tasks.data.samples import CHUNK_ROWS, RowsSplit, chunks

_log = logging.getLogger(__name__)
_LEVELS = 256
_DECODED_ROWS = CHUNK_ROWS // 4  # encoded images may be large


class Statistics(BaseModel, extra="forbid", frozen=True):
    """Per channel, of values in [0, 1]; the population's deviation (divided by n)."""

    mean: tuple[float, ...]
    std: tuple[float, ...] = Field(description="above 0")


def statistics(splits: Mapping[SplitName, RowsSplit], digest: str, *, cache: Path | None, at: str) -> Statistics:
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
    """Mean and deviation per channel in one pass: exact counts of the values of uint8, float64 sums of float32."""
    channels = split.samples.shape[0]
    counts = np.zeros((channels, _LEVELS), np.int64)
    sums, squares = np.zeros(channels), np.zeros(channels)
    for rows in chunks(split.rows, _DECODED_ROWS):
        pixels = split.samples.pixels(rows)
        for channel in range(channels):
            values = pixels[:, channel].ravel()
            if values.dtype == np.uint8:
                counts[channel] += np.bincount(values, minlength=_LEVELS)
            else:
                wide = values.astype(np.float64)
                sums[channel] += wide.sum()
                squares[channel] += wide @ wide
    levels = np.arange(_LEVELS) / (_LEVELS - 1)
    sums += counts @ levels
    squares += counts @ levels**2
    total = len(split) * np.prod(split.samples.shape[1:])
    mean = sums / total
    std = np.sqrt(np.maximum(squares / total - mean**2, 0))
    return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _measured(splits: Mapping[SplitName, RowsSplit], *, at: str) -> Statistics:
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
