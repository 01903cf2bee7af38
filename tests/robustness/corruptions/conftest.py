"""Real photographs, small and large, and each sample's random draws as the corruptions make them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_sample_images

from kdpipe.foundation.randomness import numpy_stream

Images = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def large() -> Images:
    """Crops of two photographs, (4, 3, 224, 224), in [0, 1]."""
    pictures = [image.transpose(2, 0, 1).astype(np.float32) / 255 for image in load_sample_images().images]
    return np.stack([picture[:, 100:324, left : left + 224] for picture in pictures for left in (0, 400)])


@pytest.fixture(scope="session")
def small(large: Images) -> Images:
    """The same at 32 pixels, (4, 3, 32, 32)."""
    means: Images = large.reshape(4, 3, 32, 7, 32, 7).mean(axis=(3, 5))
    return means


@pytest.fixture(scope="session")
def draws_of() -> Callable[[str, int, int], np.random.Generator]:
    """`draws_of(name, severity, index)`: the generator of that sample, for seed 0."""
    return lambda name, severity, index: numpy_stream(0, f"corruption/{name}-{severity}/sample-{index}")
