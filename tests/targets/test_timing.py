"""When times are claimed, and when a busy machine leaves none: from made-up runs, and beside programs that really compute."""

import contextlib
import itertools
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdpipe.targets.causes import Evidence
from kdpipe.targets.devices.agent import COUNTED, INTERRUPTED, NEEDED, UNCOUNTED, Paced, in_turn, interruptions, usable_cores
from kdpipe.targets.explanation import concluded
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.observed import Observed
from kdpipe.targets.timing import Condition, Machine, Times, concluded_times, times

MODEL = Path("int8.onnx")
BASE = ("alone", "again")


def whiles(ms, *, runs=3, turns=12, interrupted=0.0):
    """Equal runs; of the first `interrupted` of each while's another program had the core, which took ten times as long."""
    hit = round(interrupted * runs)
    each = [[round(10 * ms * 1e6), INTERRUPTED]] * hit + [[round(ms * 1e6), COUNTED]] * (runs - hit)
    return [[[round(2 * ms * 1e6), UNCOUNTED], *each] for _ in range(turns)]


def concluded_of(runs, machine=None, threads=1):
    asked = [Condition(name, MODEL, 1 if "one_thread" in name else threads, 16 if name == "within_batch" else 1) for name in runs]
    return concluded_times(asked, runs, 5_000_000, machine or Machine(cores=2), threads=threads)


def test_times_are_of_the_undisturbed_runs_alone():
    found = concluded_of({"alone": whiles(1.0, interrupted=0.67), "again": whiles(1.01), "within_batch": whiles(8.0), "float_alone": whiles(2.0)})
    assert (found.alone, found.within_batch, found.float_alone, found.first, found.unsteady) == (1.0, 0.5, 2.0, 5.0, ())


def test_a_file_that_was_interrupted_too_often_has_no_times_at_all():
    found = concluded_of({"alone": whiles(1.0, interrupted=1.0), "again": whiles(1.0), "float_alone": whiles(2.0)}, Machine(2, 0.84, 0.05))
    assert found == Times(
        alone=None,
        cores=2,
        unsteady=("36 of 36 inferences were interrupted", "other programs took 84 % of its cores", "the hypervisor took 5 % of them"),
    )


def test_a_file_that_is_not_as_fast_as_itself_has_no_times_at_all():
    found = concluded_of({"alone": whiles(1.0), "again": whiles(1.3), "float_alone": whiles(2.0)})
    assert (found.alone, found.float_alone) == (None, None)
    assert found.unsteady == ("the file against itself came out 1.30 instead of 1",)


def test_one_condition_whose_halves_differ_is_left_out_and_named():
    slower = [part for pair in zip(whiles(2.0, turns=5), whiles(2.4, turns=5), strict=True) for part in pair]
    found = concluded_of({"alone": whiles(1.0), "again": whiles(1.0), "float_alone": slower})
    assert (found.alone, found.float_alone) == (1.0, None)
    assert found.unsteady == ("in float: two halves of the same inferences differ by 17 %",)


def test_a_slow_condition_that_was_run_too_seldom_is_left_out_and_named():
    found = concluded_of({"alone": whiles(1.0), "again": whiles(1.0), "within_batch": whiles(900.0, runs=1, turns=4)})
    assert (found.alone, found.within_batch) == (1.0, None)
    assert found.unsteady == ("in a batch of 16: only 4 inferences in 5 s",)


@pytest.mark.parametrize(("others", "says"), [(0.9, True), (0.02, False)], ids=["busy", "quiet"])
def test_more_threads_than_cores_interrupt_each_other_so_that_only_others_count_against_them(others, says):
    runs = {"alone": whiles(1.0, interrupted=1.0), "again": whiles(1.0, interrupted=1.0), "one_thread": whiles(1.0)}
    found = concluded_of(runs, Machine(2, others), threads=5)
    assert (found.alone is None) == says
    assert not says or found.unsteady[0] == "more threads than cores, beside other programs"


def test_an_explanation_tells_what_needs_no_time_and_says_what_it_does_not_claim():
    node = NodePrecision(name="conv", operator="Conv", precision="float32", microseconds=50.0, share=1.0)
    shape = NodePrecision(name="size", operator="Shape", precision="int64", microseconds=50.0, share=0.0)
    seen = Observed(
        nodes=(node, shape), compute=frozenset({"conv"}), shapes=("size",), leftover=("q",), unsteady="only 2 of 90 profiled inferences were not interrupted"
    )
    lost = Times(alone=None, unsteady=("30 of 30 inferences were interrupted",))
    explanation = concluded("onnxruntime 1.32.0 CPU", Evidence(seen, lost, frozenset({"x86-64", "vnni"})))
    assert {finding.cause for finding in explanation.findings} == {"run-in-float", "dynamic-shape"}
    assert all(finding.share is None and "%" not in finding.text for finding in explanation.findings)
    assert (explanation.milliseconds, explanation.ratio_to_float, explanation.int8_share) == (None, None, 0.0)
    assert all(it.microseconds is None for it in explanation.nodes)
    assert explanation.too_busy == (
        "the machine was too busy, the causes that rest on time are not claimed: "
        "only 2 of 90 profiled inferences were not interrupted; 30 of 30 inferences were interrupted"
    )


@contextlib.contextmanager
def programs_that_compute(count):
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def busy_for(milliseconds):
    """As long as that of processor time, whatever others do: what an inference is."""

    def run(batch):
        end = time.thread_time() + milliseconds / 1e3
        while time.thread_time() < end:
            pass

    return run


@pytest.mark.slow
def test_beside_programs_that_compute_a_short_file_keeps_its_time_and_a_long_one_has_none():
    """Two for each core, of the same priority: whatever takes longer than the kernel lets anyone have a core is always interrupted."""

    class Opening:
        name, on_cpu = "busy", True

        def __init__(self, milliseconds):
            self.milliseconds = milliseconds

        def load(self, model, *, threads, shape=None):
            return SimpleNamespace(run=busy_for(self.milliseconds), batch=4, shape=(4,))

    example = np.zeros((4, 4), np.float32)
    with programs_that_compute(2 * usable_cores()):
        before = interruptions()
        long = times(Opening(60.0), Path("int8.xml"), example, threads=1)
        assert interruptions() > before, "this machine's kernel counts no interruptions"
        short = times(Opening(0.3), Path("int8.xml"), example, threads=1)
    assert long.alone is None
    assert "interrupted" in long.unsteady[0]
    assert any("other programs took" in why for why in long.unsteady)
    assert short.alone is None or 0.3 <= short.alone < 0.6, "claimed only where it is what the file takes"


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only while a model runs; `interrupted`: how often another program had the core."""
    it = SimpleNamespace(ns=0, interrupted=0, rests=[])
    passing = SimpleNamespace(perf_counter_ns=lambda: it.ns, perf_counter=lambda: it.ns / 1e9, sleep=it.rests.append)
    monkeypatch.setattr("kdpipe.targets.devices.agent.time", passing)
    monkeypatch.setattr("kdpipe.targets.devices.agent.interruptions", lambda: it.interrupted)
    return it


def taking(clock, ms, order=None, interrupted=()):
    numbers = itertools.count()

    def run(batch):
        clock.ns += round(ms * 1e6)
        clock.interrupted += next(numbers) in interrupted
        if order is not None:
            order.append(ms)

    return Paced(run, None)


def test_a_while_with_an_interruption_is_followed_by_a_rest_and_quiet_ones_end_it(clock):
    paced = taking(clock, 0.4, interrupted=(1,))
    assert [state for _, state in paced.runs(0.001)] == [UNCOUNTED, INTERRUPTED, COUNTED]
    assert clock.rests == []
    assert [state for _, state in paced.runs(0.001)] == [UNCOUNTED, COUNTED, COUNTED]
    paced.runs(0.001)
    paced.runs(0.001)
    assert clock.rests == [0.002, 0.001]


def test_what_takes_longer_than_a_while_counts_from_its_first_run_on(clock):
    assert taking(clock, 5.0).runs(0.001) == [[5_000_000, COUNTED]]


def test_models_are_run_in_turn_until_each_has_the_runs_that_a_time_needs(clock):
    order = []
    found = in_turn({"a": taking(clock, 0.2, order), "b": taking(clock, 0.3, order)}, 0.001, 0.01, 20.0)
    for own in found.values():
        assert sum(state == COUNTED for runs in own for _, state in runs) >= NEEDED
        assert sum(ns for runs in own for ns, _ in runs) >= 10_000_000
    assert [name for name, _ in itertools.groupby(order)] == [0.2, 0.3] * (len(order) // 9)


def test_models_that_are_always_interrupted_end_at_the_limit(clock):
    found = in_turn({"a": taking(clock, 0.2, interrupted=range(10**6))}, 0.001, 0.01, 2.0)
    assert clock.ns == pytest.approx(2e9, rel=0.01)
    assert {state for runs in found["a"] for _, state in runs} == {UNCOUNTED, INTERRUPTED}
