import io

import numpy as np
import pytest
from PIL import Image

from kdpipe.tasks.image_classification import ImageClassification


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """`cifar(**arrays)`: a folder with small sets in CIFAR-10's format, with people's labels beside where arrays are given; `labels`: training's own."""
    monkeypatch.delenv("KDPIPE_DATA", raising=False)
    draws = np.random.default_rng(0)
    labels = np.arange(60) % 3

    def jpeg_set(path, own):
        files = []
        for _ in own:
            buffer = io.BytesIO()
            Image.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "JPEG")
            files.append(buffer.getvalue())
        offsets = np.cumsum([0, *map(len, files)])
        np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=own)

    def made(folder=tmp_path, **arrays):
        jpeg_set(tmp_path / "cifar10-jpeg-train.npz", labels)
        jpeg_set(tmp_path / "cifar10-jpeg-test.npz", labels[:12])
        if arrays:
            np.savez(folder / "cifar10n-labels.npz", **arrays)
        return tmp_path

    made.labels = labels
    return made


def load(folder, tmp_path, **settings):
    return ImageClassification.model_validate({"data": "cifar10", "path": folder, "validation_share": 0.2, **settings}).load(tmp_path, 0)


def test_peoples_labels_replace_those_of_training_and_validation(cifar, tmp_path):
    worse = (cifar.labels + (np.arange(60) % 5 == 0)) % 3
    folder = cifar(clean=cifar.labels, worse=worse)

    own, theirs = load(folder, tmp_path), load(folder, tmp_path, labels="worse")

    for name in ("train", "validation"):
        split = getattr(theirs, name)
        assert np.array_equal(split.rows, getattr(own, name).rows)
        assert np.array_equal(split.labels, worse[split.rows])
    assert np.array_equal(theirs.test.labels, own.test.labels)
    assert theirs.digest != own.digest
    assert sum(wrong for wrong, _ in theirs.relabelled.wrong.values()) == 12
    assert theirs.relabelled.how == "CIFAR-10N's human labels 'worse'"


def test_its_clean_labels_are_the_data_as_they_are(cifar, tmp_path):
    folder = cifar(clean=cifar.labels)

    assert load(folder, tmp_path, labels="clean").digest == load(folder, tmp_path).digest


def test_the_file_may_lie_where_the_environment_says(cifar, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    folder = cifar(tmp_path / "elsewhere", clean=cifar.labels, aggre=cifar.labels[::-1])
    monkeypatch.setenv("KDPIPE_DATA", str(tmp_path / "elsewhere"))

    data = load(folder, tmp_path, labels="aggre", clean_validation=True)

    assert np.array_equal(data.train.labels, cifar.labels[::-1][data.train.rows])
    assert np.array_equal(data.validation.labels, cifar.labels[data.validation.rows])


def test_labels_of_another_order_are_refused(cifar, tmp_path, problem):
    folder = cifar(clean=np.roll(cifar.labels, 1), worse=cifar.labels)

    told = problem(lambda: load(folder, tmp_path, labels="worse"))

    assert told.message == "its 'clean' labels are not those of the images: 60 of 60 differ, first at index 0"
    assert str(told.at).endswith("cifar10n-labels.npz")
    assert told.do == "use CIFAR-10's training set in its original order, which is that of CIFAR-10N"


def test_a_file_that_is_not_there_is_told_with_the_places(cifar, tmp_path, problem):
    folder = cifar()

    told = problem(lambda: load(folder, tmp_path, labels="worse"))

    assert told.message == f"cifar10n-labels.npz is not there: looked in {folder}"
    assert told.at == "[task] labels"
    assert "put it beside CIFAR-10's files, or where KDPIPE_DATA points" in told.do


@pytest.mark.parametrize(
    ("arrays", "message", "do"),
    [
        (lambda own: {"clean": own}, "the file has no 'worse'", "it has clean"),
        (lambda own: {"worse": own}, "the file has no 'clean'", "it has worse"),
        (lambda own: {"clean": own, "worse": own[:-1]}, "59 labels for 60 images", "exactly one label for each image"),
        (lambda own: {"clean": own, "worse": own + 1}, "label 3 is no class of CIFAR-10", "class indices"),
        (lambda own: {"clean": own, "worse": own / 2}, "labels are float64, not whole numbers", "class indices"),
    ],
    ids=["no such labels", "no clean ones", "too few", "an eleventh class", "fractions"],
)
def test_a_file_that_does_not_fit_is_refused(arrays, message, do, cifar, tmp_path, problem):
    folder = cifar(**arrays(cifar.labels))

    told = problem(lambda: load(folder, tmp_path, labels="worse"))

    assert told.message == message
    assert "cifar10n-labels.npz" in str(told.at)
    assert do in told.do


@pytest.mark.parametrize(("name", "share"), [("clean", 0.0), ("aggre", 0.0901), ("random1", 0.1723), ("worse", 0.4021)])
def test_the_real_labels_are_wrong_as_often_as_they_should_be(name, share, shared_data):
    from kdpipe.tasks.data.cifar10 import load as cifar10
    from kdpipe.tasks.data.cifar10n import human_labels

    train = cifar10(shared_data, name="cifar10").train

    labels = human_labels(name, train, beside=shared_data, variable="KDPIPE_DATA")

    assert (labels.values != train.labels).mean() == pytest.approx(share, abs=5e-5)
