"""What the machine did beside the latencies: in the report, and where it takes a budget's figure away."""

import re
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.budgets import Budgets, check_budgets
from kdpipe.pipeline.report.render import render
from kdpipe.targets.conditions import judged
from kdpipe.targets.devices.messages import Watched
from kdpipe.targets.measurements import Bench, Percentile, Rate, Throughput

EQUAL = Percentile(value_ms=1.0, low_ms=0.99, high_ms=1.005)
QUIET = {"clock_mhz": (None,) * 3, "temperature_celsius": (None,) * 3, "held_back": None, "switches_waiting": 0, "switches_preempted": 0, "siblings": ()}


@pytest.fixture
def build(build_folder: Any) -> Any:
    """A build, and a function that writes what the machine did while its int8 file was measured at batch 1."""
    made = build_folder.write()
    path: Path = made.results["bench@cpu"].folder / "bench.json"
    before = Bench.model_validate_json(path.read_bytes())

    def bench(**changed: Any) -> None:
        watched = Watched.model_validate({**QUIET, "seconds": 1.0, "cores": (0,), "throttle_events": 0, "others_share": 0.2, "stolen_share": 0.0, **changed})
        latency = next(it for it in before.latencies if it.model == "int8" and it.batch == 1)
        met = judged(watched, EQUAL, 0.0, runtime=latency.runtime, batch=1, threads=latency.threads)
        rate = Rate(value=2000.0, low=1900.0, high=2100.0)
        half = Rate(value=0.5, low=0.45, high=0.55)
        asked = {"runtime": latency.runtime, "batch": 32, "threads": 1, "streams": 4, "windows": 20, "samples_per_second": rate}
        many = (Throughput(model="float", **asked), Throughput(model="int8", **asked, ratio_to_float=half))
        path.write_text(before.model_copy(update={"conditions": (met,), "throughputs": many}).model_dump_json())

    return made, bench


def _text(build: Any) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", render(build, (), None)))


def test_the_report_says_whether_the_times_can_be_claimed_and_what_speaks_against_it(build: Any) -> None:
    made, bench = build
    bench()
    text = _text(made)
    assert "whether their times can be claimed: by the float student against itself" in text
    assert "claimable other programs took 20 % of its cores; short measurement: 1.0 s, 10 s are due for a figure that is published" in text


def test_the_report_shows_throughput_beside_floats(build: Any) -> None:
    made, bench = build
    bench()
    text = _text(made)
    assert "Samples a second when several callers ask at the same time" in text
    assert "0.50 [0.45, 0.55]" in text


def test_a_throttled_latency_meets_no_budget(build: Any) -> None:
    made, bench = build
    bench()
    (met,) = check_budgets(made, {"cpu": Budgets(p90_ms=100.0)})
    assert met.state == "met"
    bench(throttle_events=3)
    (verdict,) = check_budgets(made, {"cpu": Budgets(p90_ms=100.0)})
    assert (verdict.state, verdict.bound) == ("not checkable", None)
    assert verdict.reason.endswith("1 thread: throttled: not claimable")
