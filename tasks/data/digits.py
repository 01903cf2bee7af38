"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, ten classes, one set.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test part, as scikit-learn ships it.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.source import Source, source_of_arrays

NAME = "digits"
_FILE = Path("datasets", "data", "digits.csv.gz")
_WHITE = 16  # pixels run from 0 to 16
_SIDE = 8


def load(classes: tuple[str, ...] | None = None) -> Source:
    """The digits, float32 in [0, 1], one set. ConfigError with the command that installs scikit-learn where it is missing."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ConfigError("the digits come with scikit-learn, which is not installed", at='data = "digits"', do="pip install scikit-learn")
    table = _table(Path(spec.origin).parent / _FILE)
    images = (table[:, :-1].reshape(-1, 1, _SIDE, _SIDE) / _WHITE).astype(np.float32)
    return source_of_arrays(NAME, {"train": (images, table[:, -1].astype(np.int64))}, at={"train": 'data = "digits"'}, classes=classes)


def _table(path: Path) -> npt.NDArray[np.float64]:
    """64 pixels and the label in each row. The file is read directly: importing sklearn.datasets takes longer than a warm build may."""
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
