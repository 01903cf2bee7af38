import struct
import zipfile

import numpy as np
import pytest

from kdpipe.tasks.data.npz import load


def test_images_and_labels_make_one_set(arrays, npz):
    images, labels = arrays(12)

    source = load(npz(images=images, labels=labels))

    assert list(source.parts) == ["train"]
    assert source.classes == ("0", "1", "2")
    assert np.array_equal(source.train.samples.pixels(np.array([3, 1])), images[[3, 1]])
    assert source.train.labels.tolist() == labels.tolist()


def test_a_pair_for_each_set_makes_three_sets(arrays, npz):
    sets = {name: arrays(6, seed=seed) for seed, name in enumerate(("train", "val", "test"))}

    source = load(npz(**{f"{name}_{kind}": pair[place] for name, pair in sets.items() for place, kind in enumerate(("images", "labels"))}))

    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert np.array_equal(source.parts[part].samples.pixels(np.arange(6)), sets[name][0])


def test_names_as_labels_are_the_classes_in_their_order(arrays, npz):
    images, _ = arrays(4)

    source = load(npz(images=images, labels=np.array(["dog", "cat", "dog", "ant"])))

    assert source.classes == ("ant", "cat", "dog")
    assert source.train.labels.tolist() == [2, 1, 2, 0]


def test_the_configured_names_win_over_those_of_the_file(arrays, npz):
    images, labels = arrays(6)
    path = npz(images=images, labels=labels, classes=np.array(["a", "b", "c"]))

    assert load(path).classes == ("a", "b", "c")
    assert load(path, classes=("x", "y", "z")).classes == ("x", "y", "z")


def test_a_label_without_a_class_is_refused(arrays, npz, problem):
    images, _ = arrays(4)
    path = npz(images=images, labels=np.array(["dog", "cat", "dog", "ant"]))

    told = problem(lambda: load(path, classes=("cat", "dog")))

    assert told.message == "label 'ant' is not one of the classes cat, dog"
    assert told.at == f"{path}, train"
    assert told.do == "name all classes in [task] classes"


def test_names_in_one_set_and_numbers_in_another_are_refused(arrays, npz, problem):
    images, labels = arrays(4, classes=2)
    path = npz(train_images=images, train_labels=labels, test_images=images, test_labels=np.array(["a", "b", "a", "b"]))

    told = problem(lambda: load(path))

    assert told.message == "labels are names in one set and numbers in another"
    assert told.at == f"{path}, test"
    assert told.do == "use one kind in all sets"


def test_a_missing_file_is_told(tmp_path, problem):
    told = problem(lambda: load(tmp_path / "none.npz"))

    assert told.message == "no such file"
    assert told.at == str(tmp_path / "none.npz")
    assert "relative paths" in told.do


@pytest.mark.parametrize("kept", [10, 300, -30], ids=["head only", "middle", "index cut off"])
def test_a_file_cut_short_is_told(kept, arrays, npz, problem):
    images, labels = arrays(30)
    path = npz(images=images, labels=labels)
    path.write_bytes(path.read_bytes()[:kept])

    told = problem(lambda: load(path))

    assert "damaged or cut short" in told.message
    assert told.at == str(path)
    assert "again" in told.do


def test_a_flipped_byte_in_the_images_is_told(arrays, npz, problem):
    images, labels = arrays(30)
    path = npz(images=images, labels=labels)
    content = bytearray(path.read_bytes())
    content[800] ^= 0xFF
    path.write_bytes(content)

    told = problem(lambda: load(path))

    assert "damaged or cut short" in told.message
    assert told.at == str(path)
    assert "again" in told.do


def test_pickled_objects_are_never_read(npz, problem):
    path = npz(images=np.array([{"a": 1}, None], object), labels=np.array([0, 1]))

    told = problem(lambda: load(path))

    assert told.message == "the file holds pickled objects, which are never read"
    assert told.at == str(path)
    assert "plain arrays" in told.do


@pytest.mark.parametrize("content", [b"", b"images", b"\x93NUMPY\x01\x00"], ids=["empty", "text", "a single array"])
def test_what_is_no_npz_is_told(content, tmp_path, problem):
    path = tmp_path / "one.npz"
    path.write_bytes(content)

    told = problem(lambda: load(path))

    assert told.message == "this is not an .npz file of named arrays"
    assert told.at == str(path)
    assert "numpy.savez" in told.do


@pytest.mark.parametrize(
    ("names", "message", "do"),
    [
        (("pictures", "labels"), "there is 'labels' and no 'images'", "store 'images' as well"),
        (("test_images", "test_labels"), "no training images: the file holds test_images, test_labels", "store 'images' and 'labels'"),
        (("train_images", "y"), "there is 'train_images' and no 'train_labels'", "store 'train_labels' as well"),
    ],
    ids=["misnamed images", "test only", "no labels"],
)
def test_missing_arrays_are_named(names, message, do, arrays, npz, problem):
    images, labels = arrays(6)
    path = npz(**dict(zip(names, (images, labels), strict=True)))

    told = problem(lambda: load(path))

    assert told.message == message
    assert told.at == str(path)
    assert do in told.do


def test_class_names_that_are_no_texts_are_refused(arrays, npz, problem):
    images, labels = arrays(6)
    path = npz(images=images, labels=labels, classes=np.arange(3))

    told = problem(lambda: load(path))

    assert told.message == "'classes' is int64 of the shape (3,)"
    assert told.at == str(path)
    assert told.do == "store one text for each class"


@pytest.mark.parametrize("images", [10**9, 10**15, 10**30], ids=["784 GB", "784 PB", "no machine's"])
def test_a_file_that_claims_more_images_than_fit_into_memory_is_told(images, tmp_path, problem):
    header = repr({"descr": "|u1", "fortran_order": False, "shape": (images, 28, 28)}).encode().ljust(117) + b"\n"
    path = tmp_path / "claims.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)

    told = problem(lambda: load(path))

    assert told.message == "the array 'images' does not fit into memory"
    assert told.at == str(path)
    assert told.do == "check that the file is whole; a set larger than memory: a folder of class folders, whose images stay on disk"
