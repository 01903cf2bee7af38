import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kdpipe.tasks.data.label_noise import LabelNoise
from kdpipe.tasks.data.partition import Shares, partitioned
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit
from kdpipe.tasks.data.source import source_of_arrays
from kdpipe.tasks.image_classification import ImageClassification

CLASSES = ("ant", "bee", "cat", "dog")


def split(labels, rows=None):
    """A split of all rows of a pile, or of some."""
    labels = np.asarray(labels)
    rows = np.arange(len(labels)) if rows is None else rows
    return RowsSplit(ArraySamples(np.zeros((len(labels), 1, 2, 2), np.uint8)), rows, labels[rows])


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=4, max_size=4), rate=st.floats(0.01, 0.74), seed=st.integers(0, 2**31))
def test_symmetric_noise_makes_exactly_its_share_wrong(counts, rate, seed):
    own = split(np.repeat(np.arange(4), counts))

    labels = LabelNoise(rate=rate).labels(own, CLASSES, "train", seed)

    assert (labels != own.labels).sum() == round(rate * sum(counts))
    assert set(labels.tolist()) <= {0, 1, 2, 3}


def test_symmetric_noise_takes_every_other_class_equally_often():
    own = split(np.repeat(np.arange(4), 3000))

    labels = LabelNoise(rate=0.6).labels(own, CLASSES, "train", 0)

    confusion = np.array([np.bincount(labels[own.labels == name], minlength=4) for name in range(4)])
    assert confusion.diagonal() == pytest.approx(np.full(4, 1200), abs=110)  # 4 deviations of a binomial of 3,000 at 0.4
    wrong = confusion[~np.eye(4, dtype=bool)]
    assert wrong == pytest.approx(np.full(12, 600), abs=90)  # at 0.2


def test_asymmetric_noise_confuses_each_class_with_the_next_in_its_share():
    own = split(np.repeat(np.arange(4), [100, 50, 10, 40]))

    labels = LabelNoise(kind="asymmetric", rate=0.3).labels(own, CLASSES, "train", 0)

    confusion = np.array([np.bincount(labels[own.labels == name], minlength=4) for name in range(4)])
    assert confusion.tolist() == [[70, 30, 0, 0], [0, 35, 15, 0], [0, 0, 7, 3], [12, 0, 0, 28]]


def test_given_confusions_leave_the_other_classes_alone():
    own = split(np.repeat(np.arange(4), 10))

    labels = LabelNoise(kind="asymmetric", rate=0.4, confusions={"cat": "dog", "dog": "cat"}).labels(own, CLASSES, "train", 0)

    confusion = np.array([np.bincount(labels[own.labels == name], minlength=4) for name in range(4)])
    assert confusion.tolist() == [[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 6, 4], [0, 0, 4, 6]]


def test_a_higher_rate_keeps_what_a_lower_one_made_wrong():
    own = split(np.arange(400) % 4)

    low, high = (LabelNoise(rate=rate).labels(own, CLASSES, "train", 3) for rate in (0.2, 0.5))

    wrong = low != own.labels
    assert np.array_equal(low[wrong], high[wrong])


def test_the_given_labels_stay_as_they_were_and_seeds_differ():
    own = split(np.arange(400) % 4)
    noise = LabelNoise(rate=0.3)

    first, again, other = (noise.labels(own, CLASSES, "train", seed) for seed in (0, 0, 1))

    assert np.array_equal(own.labels, np.arange(400) % 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("settings_", "message", "do"),
    [
        ({"rate": 0.75}, "rate = 0.75 of symmetric noise: from 0.75 on the right label of 4 is no more frequent than a wrong one", "set a rate below 0.75"),
        ({"kind": "asymmetric", "rate": 0.5}, "rate = 0.5 of asymmetric noise: from 0.5 on", "set a rate below 0.5"),
    ],
    ids=["symmetric", "asymmetric"],
)
def test_a_rate_at_which_labels_say_nothing_is_refused(settings_, message, do, problem):
    told = problem(lambda: LabelNoise(**settings_).labels(split(np.arange(40) % 4), CLASSES, "train", 0))

    assert told.message.startswith(message)
    assert told.at == "[task.label_noise] rate"
    assert told.do == do


def test_a_class_that_is_not_there_is_refused(problem):
    noise = LabelNoise(kind="asymmetric", rate=0.2, confusions={"cat": "cow"})

    told = problem(lambda: noise.labels(split(np.arange(40) % 4), CLASSES, "train", 0))

    assert told.message == "no class is called 'cow'"
    assert told.at == "[task.label_noise] confusions"
    assert told.do == "the classes are ant, bee, cat, dog"


@pytest.mark.parametrize(
    "keys",
    [{}, {"rate": 0}, {"rate": 1}, {"rate": 0.2, "confusions": {"a": "b"}}, {"kind": "asymmetric", "rate": 0.2, "confusions": {"a": "a"}}],
    ids=["no rate", "rate 0", "rate 1", "confusions without asymmetric", "a class taken for itself"],
)
def test_settings_that_make_no_sense_are_refused(keys):
    with pytest.raises(ValidationError):
        LabelNoise.model_validate(keys)


def digits(tmp_path, seed=0, **settings_):
    return ImageClassification.model_validate({"data": "digits", **settings_}).load(tmp_path, seed)


def test_only_labels_of_training_and_validation_change(tmp_path):
    clean, noisy = digits(tmp_path), digits(tmp_path, label_noise={"rate": 0.4})

    for name in ("train", "validation", "test"):
        one, other = getattr(clean, name), getattr(noisy, name)
        every = np.arange(len(one))
        assert np.array_equal(one.read(every), other.read(every))
        assert (one.labels != other.labels).sum() == (0 if name == "test" else round(0.4 * len(one)))
    assert clean.digest != noisy.digest
    assert clean.relabelled is None
    assert noisy.relabelled.wrong == {"train": (432, 1079), "validation": (72, 179)}
    assert noisy.relabelled.told == (
        "labels were made noisy on purpose (symmetric noise, rate 0.4): 432 of 1,079 training labels, 72 of 179 validation labels "
        "are not the data's own; test labels are as they were"
    )


def test_validation_can_keep_its_labels(tmp_path):
    clean, noisy = digits(tmp_path), digits(tmp_path, label_noise={"rate": 0.4}, clean_validation=True)

    assert np.array_equal(clean.validation.labels, noisy.validation.labels)
    assert (clean.train.labels != noisy.train.labels).sum() == 432
    assert noisy.relabelled.wrong == {"train": (432, 1079)}


def test_the_seed_rate_and_kind_are_part_of_the_datas_identity(tmp_path):
    settings_ = [{"rate": 0.4}, {"rate": 0.3}, {"rate": 0.4, "kind": "asymmetric"}]
    digests = {digits(tmp_path, label_noise=noise).digest for noise in settings_}

    assert len(digests) == 3
    assert digits(tmp_path, label_noise={"rate": 0.4}).digest in digests
    assert digits(tmp_path, seed=1, label_noise={"rate": 0.4}).digest not in digests


def test_an_official_validation_set_gets_noise_of_its_own():
    draws = np.random.default_rng(0)
    sets = {
        name: (draws.integers(0, 256, (count, 1, 4, 4), np.uint8), np.arange(count) % 4) for name, count in (("train", 80), ("validation", 80), ("test", 8))
    }
    source = source_of_arrays("made", sets, at=dict.fromkeys(sets, "made.npz"), classes=CLASSES)

    data = partitioned(source, Shares(), 0, noise=LabelNoise(rate=0.5))

    assert data.relabelled.wrong == {"train": (40, 80), "validation": (40, 80)}
    changed = [set(split.rows[split.labels != split.rows % 4].tolist()) for split in (data.train, data.validation)]
    assert changed[0] != changed[1]


def test_a_class_that_noise_takes_away_is_told(problem):
    draws = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 60, 1])
    sets = {
        "train": (draws.integers(0, 256, (121, 1, 4, 4), np.uint8), labels),
        "validation": (draws.integers(0, 256, (6, 1, 4, 4), np.uint8), np.arange(6) % 3),
    }
    sets["test"] = sets["validation"]
    source = source_of_arrays("made", sets, at=dict.fromkeys(sets, "made.npz"), classes=("a", "b", "c"))
    noise = LabelNoise(kind="asymmetric", rate=0.49, confusions={"c": "a"})

    assert partitioned(source, Shares(), 0, noise=noise).relabelled.wrong["validation"] == (1, 6)  # half of two
    few = source_of_arrays("made", {**sets, "validation": (sets["test"][0][:3], np.arange(3))}, at=dict.fromkeys(sets, "made.npz"), classes=("a", "b", "c"))
    told = problem(lambda: partitioned(few, Shares(), 1, noise=LabelNoise(rate=0.6)))

    assert "the validation split has" in told.message
    assert told.at == "made.npz"
    assert "add samples" in told.do


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": "worse"}, "go with data = \"cifar10\", not with 'digits'"),
        ({"data": "cifar10", "labels": "worse", "label_noise": {"rate": 0.1}}, "two sources of wrong labels"),
        ({"clean_validation": True}, "clean_validation goes with label_noise or labels"),
        ({"data": "cifar10", "labels": "worst"}, "labels"),
    ],
    ids=["other data", "both", "neither", "unknown set"],
)
def test_task_keys_that_do_not_fit_each_other_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        ImageClassification.model_validate({"data": "digits", **keys})


def test_the_users_own_splits_get_no_noise(tmp_path, monkeypatch, problem):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_splits_to_spoil.py").write_text(
        "from pathlib import Path\nfrom kdpipe.tasks.image_classification import ImageClassification\n"
        "def own():\n    return ImageClassification(data='digits').load(Path('.'), 0)\n"
    )

    told = problem(lambda: digits(tmp_path, data="own_splits_to_spoil:own", label_noise={"rate": 0.1}))

    assert told.message == "label_noise cannot be put into splits of your own"
    assert told.at == 'data = "own_splits_to_spoil:own"'
    assert "let the function return (images, labels)" in told.do
