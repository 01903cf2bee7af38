import gzip

import numpy as np
import pytest

from kdpipe.tasks.data import fashion_mnist


def idx(array, kind=0x08):
    return bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, arrays):
    """The four files of a small set: 20 training images, 10 test images."""
    for prefix, count, seed in (("train", 20, 0), ("t10k", 10, 1)):
        images, labels = arrays(count, classes=5, seed=seed)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[:, 0])))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_the_four_files_make_a_training_and_a_test_set(folder, arrays):
    source = fashion_mnist.load(folder)

    assert list(source.parts) == ["train", "test"]
    for part, count, seed in (("train", 20, 0), ("test", 10, 1)):
        images, labels = arrays(count, classes=5, seed=seed)
        assert np.array_equal(source.parts[part].samples.pixels(np.arange(count)), images)
        assert source.parts[part].labels.tolist() == labels.tolist()


def test_files_that_are_not_compressed_are_read_as_well(folder, arrays):
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()

    assert fashion_mnist.recognises(folder)
    assert len(fashion_mnist.load(folder).train.labels) == 20


def test_a_missing_file_is_named(folder, problem):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()

    told = problem(lambda: fashion_mnist.load(folder))

    assert told.message == "no file t10k-labels-idx1-ubyte.gz here"
    assert told.at == str(folder)
    assert "path = …" in told.do


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-200], "the file is damaged or cut short"),
        (lambda content: b"", "this is not an idx file"),
        (lambda content: b"\x00" * 50, "the file is damaged or cut short"),
        (lambda content: content[:60] + bytes([content[60] ^ 0xFF]) + content[61:], "the file is damaged or cut short"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), "the file holds 1279 bytes of data, its header announces 1280"),
        (lambda content: gzip.compress(b"\x00\x00\x0d\x03" + gzip.decompress(content)[4:]), "this is not an idx file of unsigned bytes with 3 axes"),
    ],
    ids=["cut short", "empty", "no gzip", "a byte flipped", "one pixel missing", "floats"],
)
def test_a_damaged_file_is_named(folder, change, message, problem):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))

    told = problem(lambda: fashion_mnist.load(folder))

    assert message in told.message
    assert told.at == str(path)
    assert told.do == "copy or download the file again"


def test_another_number_of_labels_is_told(folder, problem):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(9))))

    told = problem(lambda: fashion_mnist.load(folder))

    assert told.message == "9 labels for 10 images"
    assert told.at == str(folder / "t10k-images-idx3-ubyte.gz")
    assert told.do == "store exactly one label for each image"


def test_the_real_set(shared_data):
    source = fashion_mnist.load(shared_data / "fashion-mnist", classes=fashion_mnist.CLASSES)

    assert np.bincount(source.train.labels).tolist() == [6000] * 10
    assert np.bincount(source.parts["test"].labels).tolist() == [1000] * 10
    assert source.train.samples.shape == (1, 28, 28)
