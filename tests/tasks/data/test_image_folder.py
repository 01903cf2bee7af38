import tracemalloc

import numpy as np
import pytest
from PIL import Image

from kdpipe.tasks.data import image_folder
from kdpipe.tasks.data.samples import RowsSplit

ANIMALS = {"cat": 4, "ant": 3}


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".JPEG"])
def test_class_folders_make_one_set_in_the_order_of_names(class_folders, suffix):
    folder = class_folders("animals", ANIMALS, suffix=suffix)

    source = image_folder.load(folder)

    assert source.name == "animals"
    assert source.classes == ("ant", "cat")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert source.train.samples.shape == (3, 12, 10)
    expected = np.asarray(Image.open(folder / "cat" / f"0001{suffix}")).transpose(2, 0, 1)
    assert np.array_equal(source.train.samples.pixels(np.array([4]))[0], expected)


def test_grey_images_have_one_channel(class_folders):
    source = image_folder.load(class_folders("animals", ANIMALS, mode="L"))

    assert source.train.samples.shape == (1, 12, 10)
    assert source.train.samples.pixels(np.arange(2)).shape == (2, 1, 12, 10)


def test_one_coloured_image_makes_all_of_them_coloured(class_folders):
    folder = class_folders("animals", ANIMALS, mode="L")
    grey = np.asarray(Image.open(folder / "ant" / "0000.png"))
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(folder / "cat" / "0003.png")

    source = image_folder.load(folder)

    assert source.train.samples.shape == (3, 12, 10)
    assert np.array_equal(source.train.samples.pixels(np.array([0]))[0], np.stack([grey] * 3))


def test_sub_folders_called_train_val_and_test_are_the_sets(class_folders):
    folder = class_folders("animals/train", ANIMALS).parent
    class_folders("animals/val", {"ant": 2, "cat": 1})
    class_folders("animals/test", {"ant": 1, "cat": 1})

    source = image_folder.load(folder)

    assert {name: len(part.labels) for name, part in source.parts.items()} == {"train": 7, "validation": 3, "test": 2}


def test_configured_classes_give_their_order(class_folders):
    source = image_folder.load(class_folders("animals", ANIMALS), classes=("cat", "ant"))

    assert source.classes == ("cat", "ant")
    assert source.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_hidden_and_other_files_are_left_alone(class_folders):
    folder = class_folders("animals", ANIMALS)
    (folder / "ant" / "notes.txt").write_text("ants")
    (folder / "ant" / "._0000.png").write_text("left by a file manager")
    (folder / ".cache").mkdir()

    assert len(image_folder.load(folder).train.labels) == 7


def test_the_first_image_of_another_size_is_named_with_both_sizes(class_folders, problem):
    folder = class_folders("animals", ANIMALS)
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(folder / "cat" / "0002.png")

    told = problem(lambda: image_folder.load(folder))

    assert told.message == f"images of unequal size: 7x9 here, 10x12 in {folder / 'ant' / '0000.png'}"
    assert told.at == str(folder / "cat" / "0002.png")
    assert told.do == "scale or crop all images to one size"


def test_a_file_that_is_no_image_is_named(class_folders, problem):
    folder = class_folders("animals", ANIMALS)
    (folder / "cat" / "0001.png").write_text("<html>not found</html>")

    told = problem(lambda: image_folder.load(folder))

    assert told.message == "not a readable PNG, JPEG or BMP image"
    assert told.at == str(folder / "cat" / "0001.png")
    assert told.do == "replace or remove the file"


def test_an_image_cut_short_is_named_when_it_is_read(class_folders, problem):
    folder = class_folders("animals", ANIMALS)
    path = folder / "cat" / "0001.png"
    path.write_bytes(path.read_bytes()[:-60])
    samples = image_folder.load(folder).train.samples

    told = problem(lambda: samples.pixels(np.arange(7)))

    assert "the image is damaged or cut short" in told.message
    assert told.at == str(path)
    assert told.do == "replace or remove the image"


def test_an_image_that_vanished_is_named_when_it_is_read(class_folders, problem):
    folder = class_folders("animals", ANIMALS)
    samples = image_folder.load(folder).train.samples
    (folder / "cat" / "0001.png").unlink()

    told = problem(lambda: samples.pixels(np.arange(7)))

    assert told.message == "cannot read the image: No such file or directory"
    assert told.at == str(folder / "cat" / "0001.png")
    assert "put the file back" in told.do


def test_sixteen_bits_a_channel_are_refused(class_folders, problem):
    folder = class_folders("animals", ANIMALS)
    Image.fromarray(np.zeros((12, 10), np.uint16)).save(folder / "ant" / "0000.png")

    told = problem(lambda: image_folder.load(folder))

    assert told.message == "image mode 'I;16' is not 8 bits a channel"
    assert told.at == str(folder / "ant" / "0000.png")
    assert told.do == "convert the images to 8-bit grey or RGB"


def test_an_empty_class_folder_is_named(class_folders, problem):
    folder = class_folders("animals", {**ANIMALS, "bee": 0})

    told = problem(lambda: image_folder.load(folder))

    assert told.message == "no image in this class folder"
    assert told.at == str(folder / "bee")
    assert "put PNG, JPEG or BMP images into it" in told.do


def test_a_class_that_only_the_test_set_has_is_named(class_folders, problem):
    folder = class_folders("animals/train", ANIMALS).parent
    class_folders("animals/test", {"ant": 1, "cat": 1, "bee": 1})

    told = problem(lambda: image_folder.load(folder))

    assert told.message == "class 'bee' is not one of the training set's: ant, cat"
    assert told.at == str(folder / "test" / "bee")
    assert told.do == "use the same class folders in all sets"


def test_configured_classes_that_are_not_the_folders_are_refused(class_folders, problem):
    folder = class_folders("animals", ANIMALS)

    told = problem(lambda: image_folder.load(folder, classes=("cat", "dog")))

    assert told.message == "classes = ['cat', 'dog'] are not the class folders: ant, cat"
    assert told.at == str(folder)
    assert "name each class folder once" in told.do


def test_memory_stays_flat_while_a_folder_is_read(class_folders):
    count = 300
    samples = image_folder.load(class_folders("big", {"a": count // 2, "b": count // 2}, size=(96, 96))).train.samples
    split = RowsSplit(samples, np.arange(count), np.zeros(count, np.int64))
    whole = count * 96 * 96 * 3 * 4
    split.read(np.arange(2))  # Pillow's own start-up allocations

    tracemalloc.start()
    for start in range(0, count, 10):
        split.read(np.arange(start, start + 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < whole / 10  # a batch is a thirtieth, as uint8 and as float32
