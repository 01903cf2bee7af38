"""Small data sets in every format, and the one problem that a refusal tells."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdpipe.foundation.errors import ConfigError


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared_data():
    """The folder with the real data sets."""
    folder = os.environ.get("KDPIPE_DATA")
    if folder is None:
        pytest.skip("KDPIPE_DATA does not name the folder of the real data sets")
    return Path(folder)


@pytest.fixture
def problem():
    """`problem(call)`: the one problem of the ConfigError that `call` raises."""

    def told(call):
        with pytest.raises(ConfigError) as caught:
            call()
        [one] = caught.value.problems
        assert one.message
        assert one.at
        assert one.do
        return one

    return told


@pytest.fixture
def arrays():
    """`arrays(n, classes=3, side=8, channels=1, seed=0)`: uint8 images (n, channels, side, side) and balanced labels."""

    def made(n, classes=3, side=8, channels=1, seed=0):
        draws = np.random.default_rng(seed)
        return draws.integers(0, 256, (n, channels, side, side), np.uint8), np.arange(n) % classes

    return made


@pytest.fixture
def npz(tmp_path):
    """`npz(images=…, labels=…)`: the path of a new .npz file."""

    def written(name="data.npz", **content):
        path = tmp_path / name
        np.savez(path, **content)
        return path

    return written


@pytest.fixture
def class_folders(tmp_path):
    """`class_folders(name, {"cat": 4, "dog": 4})`: a folder of so many images a class."""

    def written(name, counts, *, size=(10, 12), mode="RGB", suffix=".png", seed=0):
        draws = np.random.default_rng(seed)
        folder = tmp_path / name
        for label, count in counts.items():
            (folder / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                width, height = size
                pixels = draws.integers(0, 256, (height, width, 3) if mode == "RGB" else (height, width), np.uint8)
                Image.fromarray(pixels).save(folder / label / f"{number:04}{suffix}")
        return folder

    return written
