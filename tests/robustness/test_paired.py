import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.paired import paired_difference, wilson


def _table(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * (both + only_first) + [False] * (only_second + neither))
    second = np.array([True] * both + [False] * only_first + [True] * only_second + [False] * neither)
    return first, second


def test_the_worked_example_of_newcombe_comes_out() -> None:
    # Newcombe 1998, table II, row (a): 36, 12, 2, 0 of 50; method 10 gives 0.0569 to 0.3404 for first minus second.
    difference = paired_difference(*_table(36, 12, 2, 0))
    assert difference.value == pytest.approx(-20.0)
    assert (-difference.high / 100, -difference.low / 100) == pytest.approx((0.0569, 0.3404), abs=2e-4)


def test_two_perfect_models_still_have_an_interval() -> None:
    difference = paired_difference(np.ones(100, bool), np.ones(100, bool))
    assert difference.value == 0
    assert difference.low < -3 < 3 < difference.high


def test_pairing_narrows_the_interval_when_the_same_samples_are_hard() -> None:
    same = paired_difference(*_table(880, 10, 10, 100))
    independent = paired_difference(*_table(792, 98, 98, 12))
    assert same.high - same.low < 0.5 * (independent.high - independent.low)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_interval_holds_the_difference_and_turns_round_with_the_order(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.low <= there.value <= there.high
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert -100 <= there.low <= there.high <= 100


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    cells = random.multinomial(200, [0.85, 0.05, 0.03, 0.07], size=1500)
    covered = [d.low <= -2.0 <= d.high for d in (paired_difference(*_table(*map(int, row))) for row in cells)]
    assert 0.935 <= np.mean(covered) <= 0.985  # 95 % nominal; slightly conservative; binomial noise of 1500 draws is 0.6 %


def test_wilson_gives_the_textbook_interval() -> None:
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(10, 10)[1] == pytest.approx(1)
