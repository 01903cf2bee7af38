import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.targets.clock_watch import watched
from kdpipe.targets.devices.messages import ThroughputWindows
from kdpipe.targets.throughput import drift_of, measured, noise_of, rate_of, ratio_of

MS = 1_000_000


def windows(runs: list[int], callers: int = 2) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Windows of 100 ms in which each caller gets through so many runs."""
    return tuple(tuple((count, 100 * MS) for _ in range(callers)) for count in runs)


def test_the_rate_is_that_of_all_callers_together_times_the_batch():
    own = measured({"m": windows([10] * 6)}, numpy_stream(0, "test"))["m"]
    rate = rate_of(own, batch=32)
    assert (rate.value, rate.low, rate.high) == pytest.approx((2 * 100 * 32,) * 3)


def test_a_caller_that_ends_earlier_counts_over_its_own_time():
    own = measured({"m": (((10, 100 * MS), (5, 50 * MS)),) * 3}, numpy_stream(0, "test"))["m"]
    assert own.rates == pytest.approx([200, 200, 200])


def test_windows_are_paired_so_that_a_machine_that_slows_down_leaves_the_ratio():
    speed = np.linspace(100, 50, 30).astype(int)
    both = measured({"new": windows([2 * int(it) for it in speed]), "old": windows(list(map(int, speed)))}, numpy_stream(0, "test"))
    ratio = ratio_of(both["new"], both["old"])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    rate = rate_of(both["old"], batch=1)
    assert rate.low < rate.value < rate.high
    assert drift_of(both["old"]) > 0.5  # it became slower by more than half


def test_the_same_model_twice_says_what_is_noise():
    generator = np.random.default_rng(0)
    both = measured({name: windows(generator.poisson(100, 50).tolist()) for name in ("m", "again")}, numpy_stream(0, "test"))
    noise = noise_of(both["again"], both["m"])
    assert noise.low_ms < 1 < noise.high_ms
    assert noise.high_ms - noise.low_ms < 0.1
    assert drift_of(measured({"m": windows([1, 1])}, numpy_stream(0, "test"))["m"]) is None


def test_more_time_than_there_was_is_not_believed():
    message = ThroughputWindows(kind="throughput", comparison="c", model="m", windows=windows([10]))
    with pytest.raises(UnavailableError, match=r"the device.s times cannot be: 0\.1 s of runs in 0\.0 s of measuring"):
        list(watched([message], device="pi"))
