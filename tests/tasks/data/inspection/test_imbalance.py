"""Class counts in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.tasks.data.inspection.imbalance import class_shift, effective_classes, imbalance_findings, imbalance_ratio


def test_an_uneven_training_split_is_told_with_what_the_test_split_can_say():
    [finding] = imbalance_findings({"train": (900, 100, 50), "test": (90, 10, 5)}, ("a", "b", "c"))

    assert (finding.kind, finding.severity) == ("imbalance", "warning")
    assert finding.what == (
        "'a' has 900 training samples, 'c' 50: a ratio of 18.0; as uneven as 1.7 equal classes of 3. Always answering 'a' is right in 85.7 %"
    )
    assert "with 5 test samples that of 'c' is known to ±44 points at best" in finding.do


@pytest.mark.parametrize(("counts", "severity"), [((100, 80), None), ((100, 60), "note"), ((100, 9), "warning")], ids=["even", "uneven", "strong"])
def test_severity_follows_the_ratio(counts, severity):
    found = imbalance_findings({"train": counts}, ("a", "b"))
    assert [finding.severity for finding in found] == ([] if severity is None else [severity])


def test_a_split_with_other_shares_is_told_and_a_small_random_one_is_not():
    shifted = imbalance_findings({"train": (500, 500), "test": (180, 20)}, ("a", "b"))
    small = imbalance_findings({"train": (500, 500), "test": (6, 4)}, ("a", "b"))

    assert [finding.kind for finding in shifted] == ["shift"]
    assert shifted[0].what == "the classes of test are shared out otherwise than in training: 40 % of its samples would have to change class"
    assert small == []


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8))
def test_figures_keep_their_bounds(counts):
    assert imbalance_ratio(counts) >= 1
    assert 1 - 1e-9 <= effective_classes(counts) <= len(counts) + 1e-9
    assert class_shift(counts, counts) == 0
    assert 0 <= class_shift(counts, counts[::-1]) <= 1


def test_equal_classes_count_in_full_and_an_empty_class_is_infinitely_rare():
    assert effective_classes((7, 7, 7)) == pytest.approx(3)
    assert imbalance_ratio((3, 0)) == math.inf
