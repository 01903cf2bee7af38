import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.report import numbers
from kdpipe.robustness.scorecard import Figure
from kdpipe.targets.measurements import Percentile

FIGURE = Figure(value=91.23, low=89.04, high=93.06, n=1540)


def _plain(text: str) -> str:
    return text.replace(numbers.NBSP, " ")


def test_an_accuracy_carries_its_interval_and_n() -> None:
    assert _plain(numbers.percent_with_n(FIGURE)) == "91.2 % [89.0, 93.1], n = 1,540"


def test_what_was_not_measured_is_told_with_its_reason() -> None:
    assert numbers.percent_with_n(Figure(value=None, reason="no attack was asked for")) == "not measured: no attack was asked for"
    assert numbers.latency(Percentile(value_ms=None, reason="not claimable: 40 runs, 64 are needed")) == "not claimable: 40 runs, 64 are needed"


def test_a_difference_has_a_true_minus_sign() -> None:
    assert _plain(numbers.points(-0.62, -1.94, 0.7)) == "−0.6 points [−1.9, 0.7]"


@pytest.mark.parametrize(
    ("size", "text"), [(41_349, "41.3 kB"), (999_949, "999.9 kB"), (1_236_000, "1.24 MB"), (8_123_000_000, "8.1 GB"), (0, "0.0 kB")], ids=str
)
def test_sizes_count_in_thousands(size: int, text: str) -> None:
    assert _plain(numbers.kilobytes(size)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.01239, "0.0124"), (0.0999999, "0.100"), (1.2351, "1.24"), (12.0, "12.0"), (1234.0, "1,230"), (-2.131, "−2.13"), (0.0, "0")], ids=str
)
def test_latencies_have_three_significant_figures(value: float, text: str) -> None:
    assert numbers.significant(value) == text


@given(st.floats(1e-6, 1e6))
def test_the_written_number_is_within_half_a_percent_of_the_value(value: float) -> None:
    assert float(numbers.significant(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


@pytest.mark.parametrize(("value", "text"), [(0.42, "0.4 s"), (59.94, "59.9 s"), (200.3, "3 min 20 s"), (119.7, "2 min 00 s")], ids=str)
def test_times_are_in_seconds_or_minutes(value: float, text: str) -> None:
    assert _plain(numbers.seconds(value)) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (999, "999"), (272_474, "272 k"), (40_810_000, "40.8 M")], ids=str)
def test_large_counts_are_short(value: int | None, text: str) -> None:
    assert _plain(numbers.amount(value)) == text


def test_no_zero_is_negative() -> None:
    assert numbers.decimal(-0.04, 1) == "0.0"
