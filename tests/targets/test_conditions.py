import pytest

from kdpipe.targets.conditions import judged
from kdpipe.targets.devices.messages import Watched
from kdpipe.targets.measurements import Conditions, Percentile

QUIET = Watched(
    seconds=12.0,
    cores=(1,),
    siblings=(),
    clock_mhz=(3000.0, 2950.0, 2990.0),
    temperature_celsius=(50.0, 55.0, 54.0),
    throttle_events=0,
    held_back=None,
    others_share=0.01,
    stolen_share=0.0,
    switches_waiting=3,
    switches_preempted=5,
)
EQUAL = Percentile(value_ms=1.001, low_ms=0.995, high_ms=1.004)


def verdict(noise: Percentile = EQUAL, drift: float | None = 0.0, **changed) -> Conditions:
    return judged(QUIET.model_copy(update=changed), noise, drift, runtime="onnxruntime 1.32.0 CPU", batch=1, threads=1)


def test_a_quiet_machine_gives_a_claimable_figure_down_to_what_the_equal_pair_shows():
    found = verdict()
    assert (found.verdict, found.told, found.reasons, found.short) == ("claimable", "claimable", (), False)
    assert found.resolution_percent == pytest.approx(0.5)
    assert (found.cores, found.switches_preempted) == ((1,), 5)


@pytest.mark.parametrize(
    ("changed", "drift", "reason"),
    [
        ({"throttle_events": 2}, 0.0, "the hardware counted 2 throttle events"),
        ({"held_back": True}, 0.0, "the board says that it is held back (voltage or heat)"),
        ({"clock_mhz": (3000.0, 1500.0, 1500.0)}, 0.5, "the clock fell from 3000 to 1500 MHz"),
    ],
    ids=["a counter", "a Raspberry Pi's word", "clock and speed together"],
)
def test_a_machine_that_slowed_itself_down_gives_no_claim(changed, drift, reason):
    found = verdict(drift=drift, **changed)
    assert (found.verdict, found.told) == ("throttled", "throttled: not claimable")
    assert reason in found.reasons


def test_a_low_clock_at_one_moment_without_slower_runs_is_told_and_not_called_throttling():
    found = verdict(clock_mhz=(3000.0, 1500.0, 3000.0), drift=0.0)
    assert found.verdict == "claimable"
    assert found.reasons == ("the clock fell from 3000 to 1500 MHz",)


def test_an_equal_pair_that_comes_apart_limits_what_can_be_claimed():
    found = verdict(Percentile(value_ms=1.01, low_ms=0.969, high_ms=1.02))
    assert (found.verdict, found.told) == ("noisy", "noisy: differences below 3.1 % not claimable")
    nothing = verdict(Percentile(value_ms=None, reason="not claimable: 4 runs, 11 are needed"))
    assert nothing.told == "noisy: the A/A pair says nothing (not claimable: 4 runs, 11 are needed)"
    assert nothing.resolution_percent is None


def test_a_busy_machine_a_drift_shared_cores_and_a_short_time_are_told():
    found = verdict(drift=-0.08, others_share=0.3, stolen_share=0.02, siblings=(3,), seconds=1.0)
    assert found.short
    assert found.reasons == (
        "the last third was 8 % faster than the first",
        "other programs took 30 % of its cores",
        "the hypervisor took 2 % of its cores",
        "CPUs 3 share its physical cores",
        "short measurement: 1.0 s, 10 s are due for a figure that is published",
    )


def test_a_machine_that_tells_nothing_is_judged_by_its_equal_pair_alone():
    silent = {"clock_mhz": (None,) * 3, "temperature_celsius": (None,) * 3, "throttle_events": None, "others_share": None, "stolen_share": None, "cores": ()}
    assert verdict(drift=None, **silent).told == "claimable"
