import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data import image_folder
from kdpipe.tasks.data.partition import Shares, partitioned
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit
from kdpipe.tasks.data.source import source_of_arrays
from kdpipe.tasks.data.statistics import channel_statistics


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 700), channels=st.integers(1, 3), eight_bit=st.booleans(), seed=st.integers(0, 1000))
def test_mean_and_deviation_are_those_of_numpy(count, channels, eight_bit, seed):
    draws = np.random.default_rng(seed)
    shape = (count, channels, 3, 5)
    images = draws.integers(0, 256, shape, np.uint8) if eight_bit else draws.random(shape, np.float32)
    rows = draws.permutation(count)

    found = channel_statistics(RowsSplit(ArraySamples(images), rows, rows))

    values = images.astype(np.float64) / (255 if eight_bit else 1)
    assert np.allclose(found.mean, values.mean((0, 2, 3)), rtol=0, atol=1e-12)
    assert np.allclose(found.std, values.std((0, 2, 3)), rtol=0, atol=1e-9)  # mean of squares minus square of the mean


def test_images_of_one_value_are_refused(problem):
    source = source_of_arrays("flat", {"train": (np.full((12, 4, 4), 7, np.uint8), np.arange(12) % 2)}, at={"train": "flat.npz"})

    told = problem(lambda: partitioned(source, Shares(), 0))

    assert told.message == "all training images are of one value in channel 0"
    assert told.at == "flat.npz"
    assert told.do == "check how the images were made"


def test_a_damaged_image_of_the_test_split_is_found_at_the_start(class_folders, problem):
    folder = class_folders("animals/train", {"ant": 6, "cat": 6}).parent
    class_folders("animals/test", {"ant": 2, "cat": 2})
    path = folder / "test" / "cat" / "0001.png"
    path.write_bytes(path.read_bytes()[:-60])

    told = problem(lambda: partitioned(image_folder.load(folder), Shares(), 0))

    assert "damaged or cut short" in told.message
    assert told.at == str(path)
    assert told.do == "replace or remove the image"


@pytest.fixture
def decoded(monkeypatch):
    """The number of images that were decoded so far."""
    from kdpipe.tasks.data import samples

    counted = []
    monkeypatch.setattr(samples, "decoded", lambda *given, original=samples.decoded, **named: counted.append(1) or original(*given, **named))
    return counted


def test_an_unchanged_folder_is_not_decoded_again(class_folders, tmp_path, decoded):
    folder = class_folders("animals", {"ant": 6, "cat": 6})
    first = partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache")
    assert len(decoded) == 12

    second = partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache")

    assert len(decoded) == 12
    assert (second.mean, second.std) == (first.mean, first.std)


def test_a_changed_folder_is_decoded_again(class_folders, tmp_path, decoded):
    folder = class_folders("animals", {"ant": 6, "cat": 6})
    partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache")

    class_folders("animals", {"ant": 6, "cat": 6}, seed=1)
    partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache")

    assert len(decoded) == 24


@pytest.mark.parametrize("content", ["", "{", '{"mean": [0.5]}'], ids=["empty", "cut short", "incomplete"])
def test_a_damaged_memory_of_the_figures_is_computed_again(class_folders, tmp_path, content):
    folder = class_folders("animals", {"ant": 6, "cat": 6})
    first = partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache")
    [path] = (tmp_path / "cache").iterdir()
    path.write_text(content)

    assert partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache").mean == first.mean
    assert path.read_text() != content


def test_where_nothing_can_be_kept_the_figures_are_computed_each_time(class_folders, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    folder = class_folders("animals", {"ant": 6, "cat": 6})

    assert len(partitioned(image_folder.load(folder), Shares(), 0, cache=tmp_path / "cache").mean) == 3


def test_sets_in_memory_keep_no_file(arrays, tmp_path):
    source = source_of_arrays("made", {"train": arrays(30)}, at={"train": "made.npz"})

    partitioned(source, Shares(), 0, cache=tmp_path / "cache")

    assert not (tmp_path / "cache").exists()
