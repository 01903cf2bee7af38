import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data.partition import Shares, partitioned
from kdpipe.tasks.data.source import source_of_arrays


def source(labels, *, validation=None, test=None, classes=None):
    """A source whose image i of the training set is known by its pixels."""

    def images(count):
        return (np.arange(count)[:, None, None, None] // np.array([1, 256]).reshape(1, 1, 1, 2) % 256).astype(np.uint8).repeat(2, axis=2)

    sets = {"train": labels, "validation": validation, "test": test}
    present = {name: (images(len(own)), np.asarray(own)) for name, own in sets.items() if own is not None}
    return source_of_arrays("made", present, at=dict.fromkeys(present, "made.npz"), classes=classes)


def identities(split):
    pixels = np.rint(split.read(np.arange(len(split)))[:, 0, 0] * 255).astype(int)
    return pixels[:, 0] + 256 * pixels[:, 1]


SIZES = st.lists(st.integers(3, 60), min_size=2, max_size=6)


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, validation=st.floats(0.02, 0.45), test=st.floats(0.02, 0.45), seed=st.integers(0, 2**31))
def test_splits_are_disjoint_and_cover_all(sizes, validation, test, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)

    data = partitioned(source(labels), Shares(validation, test), seed)

    found = np.concatenate([identities(split) for split in (data.train, data.validation, data.test)])
    assert sorted(found.tolist()) == list(range(len(labels)))
    for split in (data.train, data.validation, data.test):
        assert np.array_equal(split.labels, labels[identities(split)])


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, validation=st.floats(0.02, 0.45), test=st.floats(0.02, 0.45), seed=st.integers(0, 2**31))
def test_each_class_has_its_share_and_at_least_one_sample_everywhere(sizes, validation, test, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)

    data = partitioned(source(labels), Shares(validation, test), seed)

    for split, share in ((data.validation, validation), (data.test, test)):
        counts = np.bincount(split.labels, minlength=len(sizes))
        assert (counts >= 1).all()
        assert (np.abs(counts - share * np.array(sizes)) <= 1).all()  # to the nearest whole sample, never none
    assert (np.bincount(data.train.labels, minlength=len(sizes)) >= 1).all()


@settings(max_examples=15, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_equal_seeds_give_equal_splits_and_digests(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)

    first, second = (partitioned(source(labels), Shares(), seed) for _ in range(2))

    assert first.digest == second.digest
    assert np.array_equal(identities(first.train), identities(second.train))


def test_another_seed_gives_other_splits_and_another_digest():
    labels = np.arange(200) % 4

    first, second = (partitioned(source(labels), Shares(), seed) for seed in (0, 1))

    assert first.digest != second.digest
    assert set(identities(first.test)) != set(identities(second.test))


def test_an_official_test_set_stays_whole_for_every_seed():
    own = partitioned(source(np.arange(40) % 2, test=np.arange(10) % 2), Shares(0.25), 0)
    other = partitioned(source(np.arange(40) % 2, test=np.arange(10) % 2), Shares(0.25), 1)

    assert (len(own.train), len(own.validation), len(own.test)) == (30, 10, 10)
    assert sorted(identities(own.test)) == list(range(10))
    assert np.array_equal(identities(own.test), identities(other.test))


def test_three_official_sets_stay_as_they_are():
    data = partitioned(source(np.arange(9) % 3, validation=np.arange(6) % 3, test=np.arange(3)), Shares(), 7)

    assert (len(data.train), len(data.validation), len(data.test)) == (9, 6, 3)


def test_the_first_samples_of_a_sorted_set_are_of_many_classes():
    data = partitioned(source(np.repeat(np.arange(5), 100), test=np.repeat(np.arange(5), 100)), Shares(), 0)

    for split in (data.train, data.validation, data.test):
        assert len(set(split.labels[:25].tolist())) == 5


@pytest.mark.parametrize(("count", "expected"), [(400, 120), (6_000, 1_200)], ids=["small", "large"])
def test_small_sets_give_more_of_their_samples_to_the_test_split(count, expected):
    data = partitioned(source(np.arange(count) % 4), Shares(), 0)

    assert len(data.test) == expected
    assert len(data.validation) == count // 10


@pytest.mark.parametrize(
    ("labels", "test", "message", "do"),
    [
        ([0] * 9, None, "1 class found, at least 2 are needed", "add samples of another class"),
        ([0] * 9, [0, 1, 0], "the train split has one class only, '0'", "add samples of the other classes"),
        ([0] * 9 + [1] * 9 + [3] * 9, None, "has no sample of 1 of 4 classes: '2'", "number the classes without gaps"),
        ([0] * 9 + [1], None, "class '1' has too few samples to be split", "at least 3 samples"),
        ([0] * 9 + [1] * 2, None, "class '1' has too few samples to be split", "at least 3 samples"),
        ([0] * 9 + [1] * 9, [1] * 5, "the test split has one class only, '1'", "add samples of the other classes"),
    ],
    ids=["one class", "one class in training", "a gap", "one sample", "two samples", "one class in the test set"],
)
def test_sets_that_cannot_be_split_are_refused(labels, test, message, do, problem):
    told = problem(lambda: partitioned(source(labels, test=test), Shares(), 0))

    assert message in told.message
    assert told.at == "made.npz"
    assert do in told.do


def test_a_label_beyond_the_named_classes_is_refused(problem):
    told = problem(lambda: partitioned(source(np.arange(30) % 3, classes=("a", "b")), Shares(), 0))

    assert told.message == "label 2 at index 2 is out of range: there are 2 classes, 0 to 1"
    assert told.at == "made.npz"
    assert "[task] classes" in told.do


def test_a_test_split_too_small_for_the_interval_is_refused(problem):
    told = problem(lambda: partitioned(source(np.arange(100) % 2), Shares(0.1, 0.3), 0, half_width=5))

    assert told.message == "the test split has 30 samples; an interval of ±5 points needs 385"
    assert told.at == "made.npz"
    assert "set interval_half_width to 17.9" in told.do
