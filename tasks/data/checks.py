"""What is asked of a user's data before anything is trained on it; each failure says what, where and what to do."""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.splits import Int64Array

Layout = Literal["NHW", "NHWC", "NCHW"]
"""The order of an image array's axes: samples, height, width, channels."""

_CHANNELS = (1, 3)
_Z_95 = 1.959964  # the normal distribution's 97.5 % quantile


def checked_images(images: npt.NDArray[Any], *, at: str, layout: Layout | None = None, lenient: bool = False) -> npt.NDArray[Any]:
    """`images` as (n, channels, height, width), uint8 (0 to 255) or float32 in [0, 1].

    Without `layout` the axis of size 1 or 3 holds the channels; ConfigError when that is ambiguous, and for wrong types,
    ranges, NaN and infinity; `lenient` leaves single images' ranges, NaN and infinity to `require_values`.
    """
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ConfigError(f"images are {images.dtype}", at=at, do="store them as uint8 (0 to 255) or as float32 in [0, 1]")
    if images.size == 0:
        raise ConfigError(f"no images: the array's shape is {images.shape}", at=at, do="store at least a few images of each class")
    ordered = _channels_first(images, layout, at=at)
    if images.dtype == np.uint8:
        if images.max() <= 1:
            raise ConfigError("the uint8 images hold nothing above 1", at=at, do="uint8 runs from 0 to 255: multiply by 255, or store float32 in [0, 1]")
        return np.ascontiguousarray(ordered)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is told below
        values = np.ascontiguousarray(ordered, dtype=np.float32)
    if not lenient:
        require_values(values, at=at)
    return values


def require_values(images: npt.NDArray[np.float32], *, at: str) -> None:
    """All values of `images`, (n, …), are finite and in [0, 1]."""
    _require_finite(images, at=at)
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ConfigError(
            f"pixel values run from {low:.4g} to {high:.4g}, outside [0, 1]",
            at=at,
            do="scale the images to [0, 1], or store them as uint8",
        )


def checked_labels(labels: npt.NDArray[Any], count: int, *, at: str) -> npt.NDArray[Any]:
    """`labels` as int64 class indices or as names (unicode), (count,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ConfigError(
            f"labels have the shape {labels.shape}, ({count},) is needed", at=at, do="store one class index for each image (of one-hot rows, the argmax)"
        )
    if len(labels) != count:
        raise ConfigError(f"{len(labels)} labels for {count} images", at=at, do="store exactly one label for each image")
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind not in "iub":
        raise ConfigError(f"labels are {labels.dtype}, not whole numbers", at=at, do="store class indices 0, 1, 2, … as integers")
    if labels.min() < 0:
        raise ConfigError(f"label {labels.min()} at index {int(labels.argmin())} is below 0", at=at, do="number the classes from 0")
    if labels.max() >= len(labels):
        raise ConfigError(
            f"label {labels.max()} at index {int(labels.argmax())} is out of range: {len(labels)} samples cannot have so many classes",
            at=at,
            do="number the classes from 0 without gaps",
        )
    return labels.astype(np.int64)


def require_known_classes(labels: Int64Array, classes: tuple[str, ...], *, at: str) -> None:
    """Every label is an index into `classes`, of which there are at least two."""
    if len(classes) < 2:
        raise ConfigError(f"{len(classes)} class found, at least 2 are needed", at=at, do="add samples of another class")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ConfigError(f"two classes are called {twice!r}", at=at, do="give each class a name of its own")
    for label, name in enumerate(classes):  # they stand in reports, in JSON and on terminals
        if not name.isprintable() or not name.strip():
            raise ConfigError(f"the name of class {label} cannot be shown: {name!r}", at=at, do="give it a name of printable characters")
    if labels.max() >= len(classes):
        index = int(labels.argmax())
        raise ConfigError(
            f"label {labels[index]} at index {index} is out of range: there are {len(classes)} classes, 0 to {len(classes) - 1}",
            at=at,
            do="mend the label, or name all classes in [task] classes",
        )


def require_every_class(labels: Int64Array, classes: tuple[str, ...], split: str, *, at: str) -> None:
    """The split called `split` has at least one sample of each class."""
    absent = [name for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if count == 0]
    if len(classes) - len(absent) == 1 and len(classes) > 1:
        present = next(name for name in classes if name not in absent)
        raise ConfigError(f"the {split} split has one class only, {present!r}", at=at, do="add samples of the other classes")
    if absent:
        shown = ", ".join(repr(name) for name in absent[:5]) + (", …" if len(absent) > 5 else "")
        raise ConfigError(
            f"the {split} split has no sample of {len(absent)} of {len(classes)} classes: {shown}",
            at=at,
            do="add samples of each class to each split, or number the classes without gaps",
        )


def require_precision(count: int, half_width: float | None, *, at: str) -> None:
    """The test split's `count` samples give an accuracy to ± `half_width` percentage points at 95 %, whatever the accuracy."""
    if half_width is None:
        return
    needed = samples_needed(half_width)
    if count < needed:
        reached = 100 * _Z_95 * 0.5 / math.sqrt(count)
        raise ConfigError(
            f"the test split has {count} samples; an interval of ±{half_width:g} points needs {needed}",
            at=at,
            do=f"add test samples, raise [task] test_share, or set interval_half_width to {math.ceil(reached * 10) / 10:g}",
        )


def samples_needed(half_width: float) -> int:
    """The samples for a 95 % interval of ± `half_width` percentage points at an accuracy of 50 %, where it is widest (normal approximation)."""
    return math.ceil((_Z_95 * 50 / half_width) ** 2)


def _channels_first(images: npt.NDArray[Any], layout: Layout | None, *, at: str) -> npt.NDArray[Any]:
    if layout is not None and images.ndim != len(layout):
        raise ConfigError(f"images have the shape {images.shape}, layout {layout} has {len(layout)} axes", at=at, do="correct [task] layout")
    match layout or _layout_of(images.shape, at=at):
        case "NHW":
            return images[:, None]
        case "NHWC":
            return images.transpose(0, 3, 1, 2)
        case _:
            return images


def _layout_of(shape: tuple[int, ...], *, at: str) -> Layout:
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        raise ConfigError(f"images have the shape {shape}", at=at, do="store (n, height, width), (n, height, width, channels) or (n, channels, height, width)")
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        why = "either axis may hold the channels" if first else "no axis holds 1 or 3 channels"
        raise ConfigError(f"images have the shape {shape}: {why}", at=at, do='say which: layout = "NHWC" or layout = "NCHW" in [task]')
    return "NCHW" if first else "NHWC"


def _require_finite(values: npt.NDArray[np.float32], *, at: str) -> None:
    for start in range(0, len(values), 1024):
        chunk = values[start : start + 1024]
        if not np.isfinite(chunk).all():
            row = start + int(np.argmin(np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)))
            what = "NaN" if np.isnan(values[row]).any() else "infinite"
            raise ConfigError(f"image {row} has {what} pixels", at=at, do="repair or remove the image")
