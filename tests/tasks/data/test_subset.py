import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.randomness import numpy_stream
from kdpipe.tasks.data.subset import stratified_subset
from kdpipe.tasks.image_classification import ImageClassification


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_it_has_the_wanted_size_and_each_class_its_share(sizes, share, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = len(sizes) + round(share * (sum(sizes) - len(sizes)))

    rows = stratified_subset(labels, np.arange(len(labels)), count, numpy_stream(seed, "x"), at="made")

    assert len(rows) == len(set(rows.tolist())) == count
    assert np.array_equal(rows, np.sort(rows))
    counts = np.bincount(labels[rows], minlength=len(sizes))
    assert (counts >= 1).all()
    assert (counts <= sizes).all()
    exact = count * np.array(sizes) / sum(sizes)
    assert (counts <= np.maximum(1, np.ceil(exact))).all()
    if (exact >= 1).all():
        assert (np.abs(counts - exact) < 1).all()


def test_rows_that_are_no_candidates_are_never_taken():
    labels, candidates = np.arange(100) % 2, np.arange(0, 100, 3)

    rows = stratified_subset(labels, candidates, 20, numpy_stream(0, "x"), at="made")

    assert set(rows.tolist()) <= set(candidates.tolist())


@pytest.mark.parametrize("count", [2, 1080], ids=["fewer than classes", "more than samples"])
def test_a_size_out_of_range_is_refused(count, tmp_path, problem):
    told = problem(lambda: ImageClassification(data="digits", train_samples=count).load(tmp_path, 0))

    assert told.message.startswith(f"train_samples = {count} is not in [10, 1079]")
    assert "digits" in told.at
    assert told.do == "set [task] train_samples within that range, or leave it out for all samples"


def test_only_the_training_split_becomes_smaller(tmp_path):
    whole, small = (ImageClassification(data="digits", train_samples=count).load(tmp_path, 0) for count in (None, 200))

    assert (len(whole.train), len(small.train)) == (1079, 200)
    for a, b in ((whole.validation, small.validation), (whole.test, small.test)):
        every = np.arange(len(a))
        assert np.array_equal(a.read(every), b.read(every))
        assert np.array_equal(a.labels, b.labels)
    assert whole.digest != small.digest


def test_equal_seeds_draw_equal_samples_and_others_do_not(tmp_path):
    first, again, other = (ImageClassification(data="digits", train_samples=200).load(tmp_path, seed) for seed in (0, 0, 1))

    assert first.digest == again.digest != other.digest


def test_the_users_own_splits_are_not_cut(tmp_path, monkeypatch, problem):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_splits_to_cut.py").write_text(
        "from pathlib import Path\nfrom kdpipe.tasks.image_classification import ImageClassification\n"
        "def own():\n    return ImageClassification(data='digits').load(Path('.'), 0)\n"
    )

    told = problem(lambda: ImageClassification(data="own_splits_to_cut:own", train_samples=100).load(tmp_path, 0))

    assert told.message == "train_samples = 100 cannot be drawn from splits of your own"
    assert told.at == 'data = "own_splits_to_cut:own"'
    assert told.do == "let the function return fewer"


def test_images_that_are_left_out_are_not_decoded(shared_data, tmp_path, monkeypatch):
    from kdpipe.tasks.data.samples import EncodedSamples

    decoded = []
    pixels = EncodedSamples.pixels
    monkeypatch.setattr(EncodedSamples, "pixels", lambda self, rows: decoded.append(len(rows)) or pixels(self, rows))

    data = ImageClassification(data="cifar10", path=shared_data, train_samples=300, validation_share=0.002).load(tmp_path, 0)

    assert (len(data.train), len(data.validation), len(data.test)) == (300, 100, 10_000)
    assert sum(decoded) == 10_400
