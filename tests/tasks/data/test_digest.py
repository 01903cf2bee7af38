import shutil
import tracemalloc

import numpy as np
import pytest

from kdpipe.tasks.data import image_folder
from kdpipe.tasks.data import npz as npz_source
from kdpipe.tasks.data.digest import content_digest
from kdpipe.tasks.data.partition import Shares, partitioned
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit


def digest(source, seed=0):
    return partitioned(source, Shares(), seed).digest


@pytest.fixture
def content(arrays):
    images, labels = arrays(60)
    return {"images": images, "labels": labels, "classes": np.array(["a", "b", "c"])}


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (59, 0, 7, 7), (31, 0, 3, 4)], ids=["first", "last", "middle"])
def test_one_pixel_changes_it(npz, content, place):
    before = digest(npz_source.load(npz(**content)))
    content["images"][place] ^= 1

    assert digest(npz_source.load(npz(**content))) != before


def test_one_label_changes_it(npz, content):
    before = digest(npz_source.load(npz(**content)))
    content["labels"][17] = (content["labels"][17] + 1) % 3

    assert digest(npz_source.load(npz(**content))) != before


@pytest.mark.parametrize("key", ["classes", "images"])
def test_names_and_order_change_it(npz, content, key):
    before = digest(npz_source.load(npz(**content)))

    assert digest(npz_source.load(npz(**{**content, key: content[key][::-1]}))) != before


def test_a_copy_elsewhere_has_the_same(npz, content, tmp_path):
    path = npz(**content)
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(path, tmp_path / "elsewhere" / "other-name.npz")

    assert digest(npz_source.load(path)) == digest(npz_source.load(tmp_path / copy))


def test_image_files_elsewhere_and_renamed_in_order_have_the_same(class_folders, tmp_path):
    folder = class_folders("here", {"a": 5, "b": 5})
    copy = shutil.copytree(folder, tmp_path / "there")
    for path in list(copy.glob("*/*.png")):
        path.rename(path.with_name(f"image-{path.name}"))

    assert digest(image_folder.load(folder)) == digest(image_folder.load(copy))


def test_one_byte_of_an_image_file_changes_it(class_folders):
    folder = class_folders("here", {"a": 5, "b": 5}, suffix=".bmp")
    before = digest(image_folder.load(folder))
    path = folder / "b" / "0002.bmp"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")

    assert digest(image_folder.load(folder)) != before


def test_what_belongs_to_which_split_changes_it(arrays):
    images, labels = arrays(10)
    samples = ArraySamples(images)

    def of(rows, rest):
        return content_digest(("a", "b", "c"), {name: RowsSplit(samples, part, labels[part]) for name, part in (("train", rows), ("test", rest))})

    rows = np.arange(10)
    assert len({of(rows[:5], rows[5:]), of(rows[:6], rows[6:]), of(rows[5:], rows[:5]), of(rows[4::-1], rows[5:])}) == 4


def test_memory_stays_flat_while_it_is_taken():
    images = np.zeros((20_000, 1, 28, 28), np.uint8)
    rows = np.arange(len(images))
    split = RowsSplit(ArraySamples(images), rows, rows % 10)

    tracemalloc.start()
    content_digest(("a", "b"), {"train": split})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < images.nbytes / 5  # chunks of 1,024 images: a twentieth
