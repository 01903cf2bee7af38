import io

import numpy as np
import pytest
from PIL import Image

from kdpipe.tasks.data import cifar10
from kdpipe.tasks.data.samples import RowsSplit


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return file.getvalue()


@pytest.fixture
def content():
    """`content(n)`: the arrays of a file of n colour images of 16x16 pixels."""

    def made(n, seed=0):
        draws = np.random.default_rng(seed)
        files = [jpeg(draws.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(n)]
        offsets = np.concatenate([[0], np.cumsum([len(file) for file in files])])
        return {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, "labels": np.arange(n) % 3, "classes": np.array(["a", "b", "c"])}

    return made


def test_images_are_decoded_as_pillow_decodes_them(npz, content):
    arrays = content(6)
    source = cifar10.load(npz(**arrays))

    file = arrays["jpeg"][arrays["offsets"][4] : arrays["offsets"][5]].tobytes()
    assert source.classes == ("a", "b", "c")
    assert source.train.samples.shape == (3, 16, 16)
    assert np.array_equal(source.train.samples.pixels(np.array([4]))[0], np.asarray(Image.open(io.BytesIO(file))).transpose(2, 0, 1))


def test_a_test_file_beside_the_training_file_is_the_test_set(npz, content):
    train = npz("birds-train.npz", **content(6))
    npz("birds-test.npz", **content(3, seed=1))

    source = cifar10.load(train)

    assert source.name == "birds"
    assert len(source.test.labels) == 3


def _offsets(arrays, place, value):
    offsets = arrays["offsets"].copy()
    offsets[place] = value
    return {**arrays, "offsets": offsets}


@pytest.mark.parametrize(
    ("change", "message", "do"),
    [
        (lambda a: {**a, "labels": a["labels"][:-1]}, "5 labels for 6 images", "exactly one label"),
        (lambda a: {name: a[name] for name in ("jpeg", "labels")}, "the file has no offsets", "store 'jpeg', 'offsets' and 'labels'"),
        (lambda a: {**a, "jpeg": a["jpeg"][:-1]}, "'offsets' does not cut 'jpeg' into images", "from 0 to the length of jpeg"),
        (lambda a: _offsets(a, 2, 1), "'offsets' does not cut 'jpeg' into images", "from 0 to the length of jpeg"),
        (lambda a: {**a, "offsets": a["offsets"].astype(float)}, "'offsets' is float64 of the shape (7,)", "n + 1 integers"),
        (lambda a: {**a, "labels": np.array(list("aabbcc"))}, "labels are names", "the names in 'classes'"),
    ],
    ids=["a label missing", "no offsets", "cut short", "not rising", "no integers", "names as labels"],
)
def test_arrays_that_do_not_fit_are_told(npz, content, change, message, do, problem):
    path = npz(**change(content(6)))

    told = problem(lambda: cifar10.load(path))

    assert told.message == message
    assert told.at == str(path)
    assert do in told.do


def _damaged(arrays, row, change):
    jpeg_bytes = arrays["jpeg"].copy()
    change(jpeg_bytes[arrays["offsets"][row] : arrays["offsets"][row + 1]])
    return {**arrays, "jpeg": jpeg_bytes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.__setitem__(slice(0, 4), 0), "not a readable PNG, JPEG or BMP image"),
        (lambda file: file.__setitem__(slice(200, None), 0), "the image is damaged or cut short"),
    ],
    ids=["no JPEG", "cut short"],
)
def test_a_damaged_image_is_named_when_it_is_read(npz, content, change, message, problem):
    path = npz(**_damaged(content(6), 3, change))
    samples = cifar10.load(path).train.samples

    told = problem(lambda: samples.pixels(np.arange(6)))

    assert message in told.message
    assert told.at == f"{path}, image 3"
    assert "replace or remove" in told.do


def test_an_image_of_another_size_is_named_when_it_is_read(npz, content, problem):
    files = [jpeg(np.zeros((8, 8, 3), np.uint8)), jpeg(np.zeros((8, 10, 3), np.uint8))]
    path = npz(jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=np.array([0, len(files[0]), len(files[0] + files[1])]), labels=np.array([0, 1]))

    told = problem(lambda: cifar10.load(path).train.samples.pixels(np.arange(2)))

    assert told.message == "images of unequal size: 10x8 here, 8x8 before"
    assert told.at == f"{path}, image 1"
    assert "one size" in told.do


def test_sets_of_unequal_size_are_told(npz, content, problem):
    train = npz("birds-train.npz", **content(6))
    file = jpeg(np.zeros((8, 8, 3), np.uint8))
    test = npz("birds-test.npz", jpeg=np.frombuffer(file, np.uint8), offsets=np.array([0, len(file)]), labels=np.array([0]))

    told = problem(lambda: cifar10.load(train))

    assert told.message == "images of unequal size: (3, 8, 8) in the test set, (3, 16, 16) in the training set"
    assert told.at == str(test)
    assert told.do == "scale all images to one size"


def test_the_real_set(shared_data):
    source = cifar10.load(shared_data)

    split = RowsSplit(source.test.samples, np.arange(10_000), source.test.labels)
    x = split.read(np.array([0, 9_999]))
    assert np.bincount(source.train.labels).tolist() == [5000] * 10
    assert source.classes[:2] == ("airplane", "automobile")
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == np.float32
    assert 0 <= x.min() < x.max() <= 1
