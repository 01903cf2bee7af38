"""Corrupted test sets made by others, in the format of CIFAR-10-C: a folder of numpy files, one for each corruption, and their labels.

Each `<name>.npy` holds uint8 images (5 · n, height, width[, channels]), the n test images in their order once for each severity; `labels.npy` holds the
labels, (5 · n,) or (n,). Source: Hendrycks & Dietterich 2019, zenodo.org/records/2535967. The files are mapped, not read whole.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import SEVERITIES
from kdpipe.robustness.samples import Int64Array, Samples

LABELS_FILE = "labels.npy"
_DO = "point [evaluate] corruptions at a folder in the format of CIFAR-10-C, made of this test set"
_PIECES, _PIECE = 64, 16_384  # of a file, for its digest

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class CorruptionFiles:
    """A checked folder. `names`: of its files without `.npy`, sorted; `rows`: for each sample of the judged split its place among the n images."""

    folder: Path
    names: tuple[str, ...]
    rows: Int64Array
    count: int

    def read(self, name: str, severity: int, indices: Int64Array) -> Float32Array:
        """The corrupted samples at `indices` of the judged split, (len(indices), channels, height, width) in [0, 1]; `severity` 1 to 5."""
        if severity not in SEVERITIES:
            raise ConfigError(f"severity {severity} is not one of 1 to 5", at=self.folder, do="a file holds five")
        images = _opened(self.folder / f"{name}.npy")
        chosen = np.asarray(images[(severity - 1) * self.count + self.rows[indices]], dtype=np.uint8)
        channels_last = chosen if chosen.ndim == 4 else chosen[..., None]
        return np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def corruption_files(folder: Path, samples: Samples) -> CorruptionFiles:
    """The files in `folder`, checked against the split that they are to be made of; ConfigError tells the first that does not fit.

    A split that says which rows of its test set it holds (`rows`) is looked up by them, any other in its own order.
    """
    names = _names(folder)
    rows = np.asarray(getattr(samples, "rows", np.arange(len(samples))), dtype=np.int64)
    labels, count = _labels(folder / LABELS_FILE, rows)
    for name in names:
        _require_images(folder / f"{name}.npy", count, samples.read(np.zeros(1, dtype=np.int64)).shape[1:])
    differing = int((labels[rows] != samples.labels).sum())
    if differing:
        raise ConfigError(f"{differing} of the {len(rows)} test samples have another label there: these are corruptions of another test set, or another order",
                          at=folder / LABELS_FILE, do=_DO)  # fmt: skip
    return CorruptionFiles(folder, names, rows, count)


def files_digest(folder: Path) -> str:
    """A sha256 over the names and sizes of the folder's files and 64 pieces of each, 1 MB in all: whole sets have 3 GB, and a plan must take a second."""
    digest = hashlib.sha256()
    for name in (*_names(folder), LABELS_FILE.removesuffix(".npy")):
        path = folder / f"{name}.npy"
        _opened(path)
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            for begin in np.linspace(0, max(size - _PIECE, 0), _PIECES, dtype=np.int64):
                file.seek(int(begin))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder", at="[evaluate] corruptions", do=_DO)
    names = tuple(sorted(path.stem for path in folder.glob("*.npy") if path.name != LABELS_FILE))
    if not names:
        raise ConfigError("no .npy file of corrupted images", at=folder, do=_DO)
    return names


def _labels(path: Path, rows: Int64Array) -> tuple[Int64Array, int]:
    """The labels of the n images, and n."""
    labels = _opened(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(f"labels are {labels.dtype} {labels.shape}, not whole numbers in one row", at=path, do=_DO)
    values = np.asarray(labels, dtype=np.int64)
    most, severities = int(rows.max(initial=-1)), len(SEVERITIES)
    repeated = len(values) % severities == 0 and (values.reshape(severities, -1) == values[: len(values) // severities]).all()
    count = len(values) // severities if repeated and len(values) // severities > most else len(values)
    if count <= most:
        raise ConfigError(f"{len(values)} labels are too few: the test split goes up to sample {most}", at=path, do=_DO)
    return values[:count], count


def _require_images(path: Path, count: int, shape: tuple[int, ...]) -> None:
    images = _opened(path)
    channels, height, width = shape if len(shape) == 3 else (0, 0, 0)
    found = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
    if images.dtype != np.uint8:
        raise ConfigError(f"images are {images.dtype}, not uint8", at=path, do=_DO)
    if found != (height, width, channels):
        raise ConfigError(f"images are {found}, the test set's are {(height, width, channels)} (height, width, channels)", at=path, do=_DO)
    if len(images) != len(SEVERITIES) * count:
        raise ConfigError(f"{len(images)} images are not five severities of {count}", at=path, do=_DO)


def _opened(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"cannot be read as a numpy file: {error}", at=path, do=_DO) from error
    return array
