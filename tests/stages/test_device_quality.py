import numpy as np

from kdpipe.robustness.intervals import paired_difference
from kdpipe.stages.device_quality import spread


def right(*wrong: range) -> np.ndarray:
    """500 samples, all right but these."""
    correct = np.ones(500, bool)
    for indices in wrong:
        correct[indices] = False
    return correct


def test_the_spread_is_between_the_best_and_the_worst_place_on_the_same_samples():
    places = {"host": right(range(5)), "a72": right(range(9)), "hsw": right(range(40))}
    best, worst, difference = spread(places)
    assert (best, worst, difference.n) == ("host", "hsw", 500)
    assert abs(difference.value - 7) < 1e-9
    assert difference == paired_difference(places["host"], places["hsw"])


def test_places_that_differ_by_little_on_many_samples_widen_the_bound():
    places = {"a": right(range(4)), "b": right(range(10)), "c": right(range(100, 109), range(300, 303))}
    best, worst, difference = spread(places)
    own = paired_difference(places["a"], places["c"])
    other = paired_difference(places["b"], places["c"])
    assert (best, worst) == ("a", "c")
    assert (difference.value, difference.low) == (own.value, own.low)
    assert difference.high == max(own.high, other.high, paired_difference(places["a"], places["b"]).high)


def test_places_that_answer_alike_have_no_spread_but_a_bound():
    _, _, difference = spread({"host": right(range(5)), "a72": right(range(5))})
    assert difference.value == 0
    assert 0 < difference.high < 1.5
