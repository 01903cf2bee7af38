import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.corruption_error import corruption_error, type_figures


def cells(rates, n=200, seed=0):
    """Answers with the given error rates, {(name, severity): rate}."""
    generator = np.random.default_rng(seed)
    return {cell: generator.permutation(np.arange(n) >= round(rate * n)) for cell, rate in rates.items()}


OWN = {("fog", 1): 0.1, ("fog", 2): 0.3, ("snow", 1): 0.2, ("snow", 2): 0.6}
REFERENCE = {("fog", 1): 0.2, ("fog", 2): 0.2, ("snow", 1): 0.4, ("snow", 2): 0.6}


def right(rate, n=200):
    return np.arange(n) >= round(rate * n)


def test_the_papers_formula_by_hand():
    error = corruption_error(cells(OWN), right(0.05), cells(REFERENCE, seed=1), right(0.1), seed=0)
    assert error.by_type["fog"].value == pytest.approx(100 * 0.4 / 0.4)
    assert error.by_type["snow"].value == pytest.approx(100 * 0.8 / 1.0)
    assert error.mean.value == pytest.approx((100 + 80) / 2)
    relative = 100 * ((0.4 - 0.1) / (0.4 - 0.2) + (0.8 - 0.1) / (1.0 - 0.2)) / 2
    assert error.relative.value == pytest.approx(relative)
    assert error.mean.low < error.mean.value < error.mean.high
    assert error.mean.n == 200


@settings(max_examples=20, deadline=None)
@given(rates=st.lists(st.floats(0.05, 0.9), min_size=4, max_size=4), clean=st.floats(0, 0.04))
def test_a_model_against_itself_has_100_per_cent_exactly(rates, clean):
    own = cells(dict(zip(OWN, rates, strict=True)))
    error = corruption_error(own, right(clean), own, right(clean), seed=0)
    for figure in (error.mean, error.relative, *error.by_type.values()):
        assert figure.value == pytest.approx(100)
        assert figure.low == pytest.approx(100)
        assert figure.high == pytest.approx(100)


def test_errors_by_type_are_means_over_severities():
    figures = {figure.name: figure.error for figure in type_figures(cells(OWN), seed=0)}
    assert figures["fog"].value == pytest.approx(20)
    assert figures["snow"].value == pytest.approx(40)
    assert figures["snow"].low < 40 < figures["snow"].high
    assert list(figures) == ["fog", "snow"]


def test_a_perfect_reference_leaves_the_figure_undefined_and_says_so():
    error = corruption_error(cells(OWN), right(0.05), cells({**REFERENCE, ("fog", 1): 0, ("fog", 2): 0}), right(0), seed=0)
    assert error.by_type["fog"].value is None
    assert error.by_type["fog"].reason == "not defined: the reference makes no error under fog"
    assert error.by_type["snow"].value == pytest.approx(80)
    assert error.mean.value is None


def test_a_reference_that_loses_nothing_has_no_relative_error():
    error = corruption_error(cells(OWN), right(0.05), cells(REFERENCE), right(0.3), seed=0)
    assert error.mean.value is not None
    assert error.relative.reason == "not defined: fog costs the reference no accuracy"


def test_other_corruptions_are_not_compared():
    error = corruption_error(cells(OWN), right(0.05), cells({("fog", 1): 0.1}), right(0.1), seed=0)
    assert error.mean.reason == "not comparable: the corruptions or the samples are not the same"
    assert error.relative.value is None


def test_the_interval_is_paired():
    """Models that err on the same samples are compared more narrowly than such that do not."""
    own, reference = cells(OWN, n=500), cells(OWN, n=500)
    reference[("fog", 1)] = own[("fog", 1)] & (np.arange(500) > 10)
    paired = corruption_error(own, right(0.05, 500), reference, right(0.05, 500), seed=0).mean
    unpaired = corruption_error(own, right(0.05, 500), cells(OWN, n=500, seed=5), right(0.05, 500), seed=0).mean
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 2
