import numpy as np
import pytest

from kdpipe.tasks.data.checks import (
    checked_images,
    checked_labels,
    require_every_class,
    require_known_classes,
    require_precision,
    samples_needed,
)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        pytest.param((5, 8, 9), None, (5, 1, 8, 9), id="grey without a channel axis"),
        pytest.param((5, 8, 9, 3), None, (5, 3, 8, 9), id="channels last"),
        pytest.param((5, 3, 8, 9), None, (5, 3, 8, 9), id="channels first"),
        pytest.param((5, 3, 8, 3), "NHWC", (5, 3, 3, 8), id="ambiguous, said to be last"),
        pytest.param((5, 8, 9, 4), "NHWC", (5, 4, 8, 9), id="four channels, said to be last"),
    ],
)
def test_images_come_channels_first(shape, layout, expected):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    checked = checked_images(images, at="x.npz", layout=layout)

    assert checked.shape == expected
    assert checked.dtype == np.uint8
    if shape[-1] in (3, 4):
        assert np.array_equal(checked[2, 1], images[2, :, :, 1] if checked.shape[2:] == shape[1:3] else images[2, 1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_become_float32(dtype):
    checked = checked_images(np.full((2, 4, 4), 0.5, dtype), at="x.npz")

    assert checked.dtype == np.float32
    assert (checked == 0.5).all()


def _with(value, dtype=np.float32):
    images = np.full((4, 1, 8, 8), 0.5, dtype)
    images[2, 0, 3, 4] = value
    return images


@pytest.mark.parametrize(
    ("images", "message", "do"),
    [
        pytest.param(_with(np.nan), "image 2 has NaN pixels", "repair or remove the image", id="NaN"),
        pytest.param(_with(np.inf), "image 2 has infinite pixels", "repair or remove the image", id="infinite"),
        pytest.param(_with(1e300, np.float64), "image 2 has infinite pixels", "repair or remove the image", id="beyond float32"),
        pytest.param(_with(255.0), "pixel values run from 0.5 to 255, outside [0, 1]", "scale the images to [0, 1]", id="above 1"),
        pytest.param(_with(-0.25), "pixel values run from -0.25 to 0.5, outside [0, 1]", "scale the images to [0, 1]", id="below 0"),
        pytest.param(np.ones((4, 8, 8), np.uint8), "the uint8 images hold nothing above 1", "multiply by 255", id="uint8 of 0 and 1"),
        pytest.param(np.zeros((4, 8, 8), np.int64), "images are int64", "store them as uint8", id="other integers"),
        pytest.param(np.zeros((0, 8, 8), np.uint8), "no images: the array's shape is (0, 8, 8)", "store at least", id="empty"),
        pytest.param(np.zeros((4, 64), np.float32), "images have the shape (4, 64)", "(n, height, width)", id="flattened"),
        pytest.param(np.zeros((4, 3, 8, 3), np.float32), "either axis may hold the channels", 'layout = "NHWC"', id="ambiguous"),
        pytest.param(np.zeros((4, 8, 8, 2), np.float32), "no axis holds 1 or 3 channels", 'layout = "NHWC"', id="two channels"),
    ],
)
def test_unusable_images_are_refused(images, message, do, problem):
    told = problem(lambda: checked_images(images, at="x.npz"))

    assert message in told.message
    assert told.at == "x.npz"
    assert do in told.do


def test_a_layout_with_another_number_of_axes_is_refused(problem):
    told = problem(lambda: checked_images(np.zeros((4, 8, 8), np.uint8), at="x.npz", layout="NHWC"))

    assert told.message == "images have the shape (4, 8, 8), layout NHWC has 4 axes"
    assert told.do == "correct [task] layout"


def test_labels_in_one_column_are_flattened():
    assert checked_labels(np.array([[0], [2], [1]], np.uint8), 3, at="x").tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("labels", "message", "do"),
    [
        pytest.param(np.array([0, 1, 0]), "3 labels for 4 images", "exactly one label", id="too few"),
        pytest.param(np.array([0.0, 1.5, 0, 1]), "labels are float64, not whole numbers", "as integers", id="not whole"),
        pytest.param(np.array([0, 1, -3, 1]), "label -3 at index 2 is below 0", "number the classes from 0", id="negative"),
        pytest.param(np.array([0, 1, 0, 2**40]), "label 1099511627776 at index 3 is out of range", "from 0 without gaps", id="huge"),
        pytest.param(np.eye(4), "labels have the shape (4, 4), (4,) is needed", "argmax", id="one-hot"),
    ],
)
def test_unusable_labels_are_refused(labels, message, do, problem):
    told = problem(lambda: checked_labels(labels, 4, at="x.npz"))

    assert message in told.message
    assert told.at == "x.npz"
    assert do in told.do


@pytest.mark.parametrize(
    ("labels", "classes", "message", "do"),
    [
        pytest.param([0, 0], ("a",), "1 class found, at least 2 are needed", "another class", id="one class"),
        pytest.param([0, 2, 1], ("a", "b"), "label 2 at index 1 is out of range: there are 2 classes, 0 to 1", "mend the label", id="out of range"),
        pytest.param([0, 1], ("a", "a"), "two classes are called 'a'", "a name of its own", id="same name"),
        pytest.param([0, 1], ("a", "\x1b[31mb"), "the name of class 1 cannot be shown: '\\x1b[31mb'", "printable", id="control character"),
        pytest.param([0, 1], ("\udcff", "b"), "the name of class 0 cannot be shown: '\\udcff'", "printable", id="no unicode"),
        pytest.param([0, 1], (" ", "b"), "the name of class 0 cannot be shown: ' '", "printable", id="blank"),
    ],
)
def test_labels_must_name_known_classes(labels, classes, message, do, problem):
    told = problem(lambda: require_known_classes(np.array(labels), classes, at="x.npz"))

    assert message in told.message
    assert told.at == "x.npz"
    assert do in told.do


@pytest.mark.parametrize(
    ("labels", "message", "do"),
    [
        pytest.param([1, 1, 1], "the test split has one class only, 'b'", "the other classes", id="one class only"),
        pytest.param([0, 1, 1], "the test split has no sample of 1 of 3 classes: 'c'", "each class to each split", id="one is missing"),
    ],
)
def test_every_class_must_be_in_every_split(labels, message, do, problem):
    told = problem(lambda: require_every_class(np.array(labels), ("a", "b", "c"), "test", at="x.npz"))

    assert message in told.message
    assert told.at == "x.npz"
    assert do in told.do


def test_a_split_too_small_for_the_interval_says_how_many_are_needed_and_what_it_reaches(problem):
    told = problem(lambda: require_precision(400, 1.0, at="x.npz"))

    assert told.message == "the test split has 400 samples; an interval of ±1 points needs 9604"
    assert told.at == "x.npz"
    assert told.do == "add test samples, raise [task] test_share, or set interval_half_width to 4.9"


def test_the_advised_interval_is_then_accepted():
    require_precision(400, 4.9, at="x.npz")
    require_precision(400, None, at="x.npz")


def test_samples_needed_at_the_widest_point_by_hand():
    assert samples_needed(1.0) == 9604  # (1.959964 * 50)^2 = 9603.6
    assert samples_needed(3.1) == 1000  # docs: 1,000 samples give ±3.1 points at 50 %
