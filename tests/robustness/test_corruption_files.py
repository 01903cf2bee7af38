from dataclasses import dataclass

import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.corruption_files import corruption_files, files_digest

COUNT = 20


@dataclass
class Shuffled:
    """A split that holds some rows of its test set, in another order."""

    rows: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.rows)

    def read(self, indices):
        return self.images[indices]


@pytest.fixture
def test_set():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8), generator.integers(0, 4, COUNT)


@pytest.fixture
def split(test_set):
    images, labels = test_set
    rows = np.random.default_rng(1).permutation(COUNT)[:15]
    return Shuffled(rows, images[rows].transpose(0, 3, 1, 2).astype(np.float32) / 255, labels[rows])


@pytest.fixture
def folder(tmp_path, test_set):
    """Two corruptions: severity s of `fog` is darker by s, of `jpeg_compression` brighter by s."""
    images, labels = test_set
    for name, sign in (("fog", -1), ("jpeg_compression", 1)):
        np.save(tmp_path / f"{name}.npy", np.concatenate([np.clip(images.astype(int) + sign * severity, 0, 255) for severity in range(1, 6)]).astype(np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return tmp_path


def test_each_sample_is_found_at_its_row_in_its_severitys_block(folder, split, test_set):
    files = corruption_files(folder, split)
    assert files.names == ("fog", "jpeg_compression")
    chosen = np.array([3, 0, 14])
    for severity in range(1, 6):
        x = files.read("fog", severity, chosen)
        expected = np.clip(test_set[0][split.rows[chosen]].astype(int) - severity, 0, 255).transpose(0, 3, 1, 2) / 255
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, expected, atol=1e-7)


def test_grey_files_without_a_channel_axis_and_labels_given_once_are_read(tmp_path, test_set):
    images, labels = test_set
    np.save(tmp_path / "snow.npy", np.tile(images[..., 0], (5, 1, 1)))
    np.save(tmp_path / "labels.npy", labels)
    split = Shuffled(np.arange(COUNT), images[..., 0][:, None].astype(np.float32) / 255, labels)
    files = corruption_files(tmp_path, split)
    np.testing.assert_array_equal(files.read("snow", 5, np.arange(COUNT)), split.images)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_that_the_files_do_not_hold_is_refused(folder, split, severity):
    with pytest.raises(ConfigError) as caught:
        corruption_files(folder, split).read("fog", severity, np.arange(2))
    problem = caught.value.problems[0]
    assert problem.message == f"severity {severity} is not one of 1 to 5"
    assert problem.at == str(folder)
    assert problem.do == "a file holds five"


def float_images(folder):
    np.save(folder / "fog.npy", np.zeros((100, 6, 5, 3), dtype=np.float32))


def other_size(folder):
    np.save(folder / "fog.npy", np.zeros((100, 8, 8, 3), dtype=np.uint8))


def four_severities(folder):
    np.save(folder / "fog.npy", np.zeros((80, 6, 5, 3), dtype=np.uint8))


def other_labels(folder):
    labels = np.load(folder / "labels.npy")
    np.save(folder / "labels.npy", (labels + 1) % 4)


def no_labels(folder):
    (folder / "labels.npy").unlink()


def pickled(folder):
    np.save(folder / "fog.npy", np.array([{}], dtype=object), allow_pickle=True)


def few_labels(folder):
    np.save(folder / "labels.npy", np.zeros(3, dtype=np.uint8))


def table_of_labels(folder):
    np.save(folder / "labels.npy", np.zeros((5, 20), dtype=np.uint8))


def no_images(folder):
    for path in folder.glob("*[!s].npy"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message", "file"),
    [
        (float_images, "images are float32, not uint8", "fog.npy"),
        (other_size, "images are (8, 8, 3), the test set's are (6, 5, 3)", "fog.npy"),
        (four_severities, "80 images are not five severities of 20", "fog.npy"),
        (other_labels, "15 of the 15 test samples have another label there", "labels.npy"),
        (no_labels, "cannot be read as a numpy file", "labels.npy"),
        (pickled, "cannot be read as a numpy file", "fog.npy"),
        (few_labels, "3 labels are too few", "labels.npy"),
        (table_of_labels, "labels are uint8 (5, 20), not whole numbers in one row", "labels.npy"),
        (no_images, "no .npy file of corrupted images", ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_fit_is_told_with_its_file(folder, split, damage, message, file):
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        corruption_files(folder, split)
    problem = caught.value.problems[0]
    assert message in problem.message
    assert problem.at == str(folder / file)
    assert "a folder in the format of CIFAR-10-C, made of this test set" in problem.do


def test_a_folder_that_is_not_there_is_told(tmp_path, split):
    with pytest.raises(ConfigError) as caught:
        corruption_files(tmp_path / "absent", split)
    problem = caught.value.problems[0]
    assert "absent' is not a folder" in problem.message
    assert problem.at == "[evaluate] corruptions"
    assert "CIFAR-10-C" in problem.do


def test_the_digest_tells_other_content_and_other_names_but_not_another_place(folder, tmp_path_factory):
    before = files_digest(folder)
    moved = tmp_path_factory.mktemp("moved") / "there"
    folder.rename(moved)
    assert files_digest(moved) == before
    images = np.load(moved / "fog.npy")
    images[50] += 1
    np.save(moved / "fog.npy", images)
    changed = files_digest(moved)
    assert changed != before
    (moved / "fog.npy").rename(moved / "mist.npy")
    assert files_digest(moved) not in (before, changed)
