import pytest

from kdpipe.tasks.data.callable import load
from kdpipe.tasks.data.source import Source

PREAMBLE = """
import numpy as np

def arrays(n):
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8), np.uint8), np.arange(n) % 3

"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """`module(code)`: the name of an importable module with that code."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(code):
        name = f"user_data_{abs(hash(request.node.nodeid))}"
        (tmp_path / f"{name}.py").write_text(PREAMBLE + code)
        return name

    return written


def test_a_pair_is_one_set(module):
    source = load(f"{module('def mine(): return arrays(9)')}:mine")

    assert isinstance(source, Source)
    assert source.name == "mine"
    assert list(source.parts) == ["train"]
    assert source.train.samples.shape == (1, 8, 8)


def test_a_mapping_names_the_sets(module):
    name = module("def mine(): return {'train': arrays(9), 'val': arrays(6), 'test': arrays(3)}")

    source = load(f"{name}:mine", classes=("x", "y", "z"))

    assert {part: len(one.labels) for part, one in source.parts.items()} == {"train": 9, "validation": 6, "test": 3}
    assert source.classes == ("x", "y", "z")


SPLITS = """
from dataclasses import dataclass
from kdpipe.tasks.data.splits import DataSplits

class Ramp:
    def __init__(self, n, classes=3):
        self.labels = np.arange(n) % classes
    def __len__(self):
        return len(self.labels)
    def read(self, indices):
        return np.ones((len(indices), 1, 8, 8), np.float32) * self.labels[indices, None, None, None] / 3

def mine():
    return DataSplits("ramp", ("a", "b", "c"), (1, 8, 8), Ramp(9), Ramp(6), TEST, "0" * 64, (0.5,), (0.2,))
"""


def test_splits_of_the_users_own_are_taken_as_they_are(module):
    data = load(f"{module(SPLITS.replace('TEST', 'Ramp(3)'))}:mine")

    assert data.name == "ramp"
    assert data.test.read(data.test.labels).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("Ramp(2)", "the test split has no sample of 1 of 3 classes: 'c'"),
        ("Ramp(0)", "the test split has 0 samples and 0 labels"),
        ("Ramp(8, classes=4)", "label 3 at index 3 is out of range"),
    ],
    ids=["class missing", "empty", "label out of range"],
)
def test_splits_of_the_users_own_are_checked(module, test, message, problem):
    reference = f"{module(SPLITS.replace('TEST', test))}:mine"

    told = problem(lambda: load(reference))

    assert message in told.message
    assert told.at == f'data = "{reference}"'
    assert told.do


@pytest.mark.parametrize(
    ("code", "message", "do"),
    [
        ("mine = 3", "is int, not a callable", "name a function without arguments"),
        ("def mine(): return arrays(9)[0]", "'train' is ndarray, not a pair (images, labels)", "return (images, labels)"),
        ("def mine(): return {'train': arrays(9), 'dev': arrays(3)}", "unknown set 'dev'; known: train, validation, val, test", "return (images, labels)"),
        ("def mine(): return {'test': arrays(9)}", "there is no 'train' among test", "return (images, labels)"),
        ("def mine(): raise OSError('no camera')", "failed: OSError: no camera", "call it without arguments yourself"),
        ("def mine(path): return arrays(9)", "failed: TypeError: ", "call it without arguments yourself"),
        ("def other(): return arrays(9)", "has no 'mine'", "check the spelling"),
    ],
    ids=["no callable", "no pair", "unknown set", "no training", "raises", "wants arguments", "not there"],
)
def test_what_cannot_be_used_is_told(module, code, message, do, problem):
    reference = f"{module(code)}:mine"

    told = problem(lambda: load(reference))

    assert message in told.message
    assert told.at == f'data = "{reference}"'
    assert do in told.do


def test_bad_pixels_of_a_set_are_told_with_its_name(module, problem):
    name = module("def mine(): return {'train': arrays(9), 'test': (arrays(3)[0] * 1.0, arrays(3)[1])}")
    reference = f"{name}:mine"

    told = problem(lambda: load(reference))

    assert "outside [0, 1]" in told.message
    assert told.at == f'data = "{reference}", test'
    assert "scale the images" in told.do


def test_a_module_that_cannot_be_imported_is_told(problem):
    told = problem(lambda: load("no_such_module:mine"))

    assert "cannot import 'no_such_module'" in told.message
    assert told.at == 'data = "no_such_module:mine"'
    assert "importable from the project's folder" in told.do
