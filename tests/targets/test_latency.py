import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdpipe.targets import latency
from kdpipe.targets.latency import (
    PERCENTILES,
    drift_warning,
    histogram_of,
    measured,
    nearest_rank,
    noise_warning,
    order_interval,
    percentile_of,
    ratio_of,
    runs_needed,
)
from kdpipe.targets.measurements import Percentile

samples_ns = st.lists(st.integers(1, 10**9), min_size=1, max_size=200).map(lambda values: np.array(values, dtype=np.int64))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def windows_of(values: np.ndarray, count: int = 20) -> latency.Windows:
    return tuple(np.array_split(values.astype(np.int64), count))


def lognormal(n: int, seed: int, scale: float = 1e6) -> np.ndarray:
    return np.round(scale * np.exp(0.1 * generator(seed).standard_normal(n))).astype(np.int64)


@pytest.mark.parametrize(("percentile", "runs"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_the_runs_that_a_percentile_needs_are_those_of_the_binomial_rule(percentile, runs):
    assert runs_needed(percentile) == runs
    above = 1 - percentile / 100
    assert stats.binom.cdf(1, runs, above) <= 0.01 < stats.binom.cdf(1, runs - 1, above)


def test_nearest_rank_by_hand():
    values = np.array([50, 15, 20, 40, 35], dtype=np.int64)
    assert [nearest_rank(values, percentile) for percentile in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]


@settings(max_examples=30, deadline=None)
@given(samples_ns, st.sampled_from(PERCENTILES))
def test_a_percentile_is_a_sample_that_enough_others_do_not_exceed(values, percentile):
    found = nearest_rank(values, percentile)
    assert found in values
    assert 100 * np.sum(values <= found) >= percentile * len(values)
    assert 100 * np.sum(values < found) < percentile * len(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(11, 3000), st.sampled_from(PERCENTILES))
def test_the_order_interval_leaves_at_most_the_allowed_tail_on_each_side(n, percentile):
    low, high = order_interval(np.arange(1, n + 1, dtype=np.int64), percentile)  # the samples are their own ranks
    below = stats.binom(n, percentile / 100)
    tail = 0.025 * (1 + 1e-9)
    assert low == 1 or below.cdf(low - 1) <= tail
    assert below.cdf(low) > 0.025 * (1 - 1e-9)  # the next rank would leave more outside
    assert high == n or below.sf(high - 1) <= tail
    assert high == 1 or below.sf(high - 2) > 0.025 * (1 - 1e-9)


def test_the_interval_covers_the_true_percentile_as_often_as_it_says():
    truth = 1e6 * np.exp(0.1 * stats.norm.ppf(0.9))
    hits = 0
    for seed in range(200):
        low, high = order_interval(lognormal(200, seed), 90)
        hits += low <= truth <= high
    assert hits >= 182  # 95 % of 200 is 190; fewer than 182 has a probability below 1 in 1000


def test_resampling_gives_what_drawing_windows_and_sorting_gives():
    windows = windows_of(lognormal(300, 5), 12)
    drawn = generator(1).multinomial(12, np.full(12, 1 / 12), size=5)
    fast = latency._resampled(windows, drawn)
    for times, row in zip(drawn, fast, strict=True):
        resample = np.concatenate([windows[index] for index, count in enumerate(times) for _ in range(count)])
        assert list(row) == [nearest_rank(resample, percentile) for percentile in PERCENTILES]


def test_a_percentile_without_enough_runs_is_not_claimable_and_says_how_many_are_needed():
    model = measured({"int8": windows_of(lognormal(40, 0), 10)}, generator())["int8"]
    assert percentile_of(model, 50).value_ms is not None
    assert percentile_of(model, 90) == Percentile(value_ms=None, reason="not claimable: 40 runs, 64 are needed")
    assert percentile_of(model, 99).reason == "not claimable: 40 runs, 662 are needed"


def test_percentiles_are_in_ms_and_inside_their_interval():
    model = measured({"int8": windows_of(lognormal(1000, 2))}, generator())["int8"]
    for percentile in PERCENTILES:
        found = percentile_of(model, percentile)
        assert found.low_ms <= found.value_ms <= found.high_ms
        assert found.value_ms == nearest_rank(np.concatenate(model.windows), percentile) / 1e6
    assert percentile_of(model, 50).value_ms == pytest.approx(1.0, rel=0.02)


def test_drift_between_windows_widens_the_interval():
    steady = lognormal(1000, 3)
    drifting = (steady * np.repeat([1.0, 1.5], 500)).astype(np.int64)
    found = measured({"steady": windows_of(steady), "drifting": windows_of(drifting)}, generator())
    width = {name: percentile_of(model, 90).high_ms - percentile_of(model, 90).low_ms for name, model in found.items()}
    assert width["drifting"] > 2 * width["steady"]


def test_an_outlier_is_kept():
    values = lognormal(1000, 4)
    values[17] = 10**9
    histogram = histogram_of(values)
    assert sum(histogram.counts) == 1000
    assert histogram.edges_ms[-1] >= 1000.0
    model = measured({"int8": windows_of(values)}, generator())["int8"]
    assert percentile_of(model, 99).high_ms <= 1000.0


@settings(max_examples=30, deadline=None)
@given(samples_ns)
def test_every_sample_is_in_the_histogram(values):
    histogram = histogram_of(values)
    assert sum(histogram.counts) == len(values)
    assert len(histogram.edges_ms) == len(histogram.counts) + 1
    assert all(low < high for low, high in zip(histogram.edges_ms, histogram.edges_ms[1:], strict=False))


def test_a_model_against_itself_has_a_ratio_of_one():
    windows = windows_of(lognormal(500, 6))
    found = measured({"a": windows, "b": windows}, generator())
    assert ratio_of(found["a"], found["b"]) == Percentile(value_ms=1.0, low_ms=1.0, high_ms=1.0)


def test_load_that_both_models_share_cancels_out_of_their_ratio():
    load = np.repeat(1 + generator(9).random(20), 50)  # each turn of windows is slowed by a factor of its own
    found = measured({"int8": windows_of(0.5 * load * lognormal(1000, 7)), "float": windows_of(load * lognormal(1000, 8))}, generator())
    ratio = ratio_of(found["int8"], found["float"])
    assert ratio.value_ms == pytest.approx(0.5, rel=0.02)
    own = percentile_of(found["int8"], 50)
    assert (ratio.high_ms - ratio.low_ms) / ratio.value_ms < 0.7 * (own.high_ms - own.low_ms) / own.value_ms


def test_a_true_slowdown_of_ten_per_cent_is_found_and_equals_are_not_told_apart():
    found_slower = told_apart = 0
    for seed in range(40):
        found = measured(
            {
                "old": windows_of(lognormal(400, 3 * seed)),
                "new": windows_of(lognormal(400, 3 * seed + 1, scale=1.1e6)),
                "again": windows_of(lognormal(400, 3 * seed + 2)),
            },
            generator(seed),
        )
        found_slower += ratio_of(found["new"], found["old"]).low_ms > 1
        again = ratio_of(found["again"], found["old"])
        told_apart += not again.low_ms <= 1 <= again.high_ms
    assert found_slower == 40
    assert told_apart <= 7  # 5 % of 40 is 2; more than 7 has a probability below 1 in 500


def test_a_ratio_of_too_few_runs_is_not_claimable():
    found = measured({"a": windows_of(lognormal(10, 0), 5), "b": windows_of(lognormal(10, 1), 5)}, generator())
    assert ratio_of(found["a"], found["b"]) == Percentile(value_ms=None, reason="not claimable: 10 runs, 11 are needed")


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Percentile(value_ms=1.01, low_ms=0.99, high_ms=1.03), None),
        (Percentile(value_ms=1.015, low_ms=1.01, high_ms=1.02), None),
        (Percentile(value_ms=0.93, low_ms=0.91, high_ms=0.95), "came out 0.930 [0.910, 0.950] instead of 1; differences below 7 % are not claimable"),
        (Percentile(value_ms=None, reason="not claimable: 8 runs, 11 are needed"), "noise check not claimable: 8 runs"),
    ],
    ids=["one is inside", "below the floor", "off", "not claimable"],
)
def test_the_noise_check_speaks_when_the_baseline_differs_from_itself(ratio, said):
    warning = noise_warning(ratio, "onnxruntime, batch 1")
    assert warning is None if said is None else said in warning


def test_a_machine_that_slows_down_is_noticed():
    values = lognormal(900, 11)
    assert drift_warning(windows_of(values, 18), "here") is None
    slowing = (values * np.linspace(1, 1.4, 900)).astype(np.int64)
    assert drift_warning(windows_of(slowing, 18), "here").startswith("here: from the first to the last third the float model became ")
    assert drift_warning(windows_of(slowing, 18), "here").endswith(" % slower (heat or load)")
    assert drift_warning(windows_of(slowing[::-1], 18), "here").endswith(" % faster (it was not warm, or the load went)")
    assert drift_warning(windows_of(values, 2), "here") is None  # too short to say


def test_throughput_counts_every_sample_of_the_batch():
    assert latency.samples_per_second(np.array([10**6, 3 * 10**6], dtype=np.int64), 32) == pytest.approx(2 * 32 / 0.004)


def test_samples_a_second_have_an_interval_that_holds_them():
    generator = np.random.default_rng(0)
    windows = tuple(generator.integers(900_000, 1_100_000, size=10) for _ in range(40))
    model = latency.measured({"m": windows}, np.random.default_rng(1))["m"]
    low, high = latency.rate_interval(model, batch=4)
    value = latency.samples_per_second(model.samples, 4)
    assert low < value < high
    assert high / low < 1.05


def test_drift_is_the_last_third_over_the_first():
    windows = tuple(np.full(5, ns) for ns in (100, 100, 100, 150, 150, 150, 200, 200, 200))
    assert latency.drift_of(windows) == pytest.approx(1.0)
    assert latency.drift_of(windows[:2]) is None


def test_the_runtime_s_own_clock_gives_a_median_with_its_interval_where_there_is_one():
    own = latency.median_inside(windows_of(lognormal(900, 11), 18), np.random.default_rng(0))
    assert own.low_ms < own.value_ms < own.high_ms
    assert latency.median_inside(None, np.random.default_rng(0)) is None
