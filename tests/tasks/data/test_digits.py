import importlib.util

import numpy as np
from sklearn.datasets import load_digits

from kdpipe.tasks.data import digits


def test_the_file_read_directly_holds_what_scikit_learn_gives():
    expected = load_digits()

    source = digits.load()

    assert source.train.samples.shape == (1, 8, 8)
    assert np.array_equal(source.train.samples.pixels(np.arange(1797))[:, 0], (expected.images / 16).astype(np.float32))
    assert np.array_equal(source.train.labels, expected.target)
    assert source.classes == tuple("0123456789")


def test_where_the_file_has_moved_scikit_learn_is_asked(monkeypatch, tmp_path):
    direct = digits.load()
    monkeypatch.setattr(digits, "_FILE", tmp_path / "moved.csv.gz")

    asked = digits.load()

    rows = np.arange(1797)
    assert np.array_equal(asked.train.samples.pixels(rows), direct.train.samples.pixels(rows))
    assert np.array_equal(asked.train.labels, direct.train.labels)


def test_without_scikit_learn_the_command_that_installs_it_is_told(monkeypatch, problem):
    monkeypatch.setattr(digits, "find_spec", lambda name: importlib.util.find_spec("no_such_distribution"))

    told = problem(digits.load)

    assert told.message == "the digits come with scikit-learn, which is not installed"
    assert told.at == 'data = "digits"'
    assert told.do == "pip install scikit-learn"
