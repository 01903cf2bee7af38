"""Which cores the agent measures on, and what it watches meanwhile; on folders that look like /sys."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.targets.devices import agent


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(capacities, siblings)`: CPUs with their relative capacity and the list of hyper-threads of each; every tick of theirs is idle."""

    def make(capacities: dict[int, int], siblings: dict[int, str] | None = None, busy: dict[int, int] | None = None) -> list[int]:
        for core, capacity in capacities.items():
            folder = tmp_path / f"cpu{core}"
            (folder / "topology").mkdir(parents=True)
            (folder / "cpu_capacity").write_text(str(capacity))
            (folder / "topology" / "thread_siblings_list").write_text((siblings or {}).get(core, str(core)))
        looks = iter([dict.fromkeys(capacities, 0), busy or {}])
        seen: list[dict[int, int]] = []

        def ticks(core: int) -> int:
            if not seen or len(seen[-1]) == len(capacities):
                seen.append({})
                make.look = next(looks)
            seen[-1][core] = make.look.get(core, 0)
            return seen[-1][core]

        monkeypatch.setattr(agent, "_CPUS", str(tmp_path))
        monkeypatch.setattr(agent, "_busy_ticks", ticks)
        monkeypatch.setattr(agent.time, "sleep", lambda seconds: None)
        bound: list[int] = []
        monkeypatch.setattr(agent.os, "sched_setaffinity", lambda pid, cores: bound.extend(cores))
        return bound

    return make


def test_big_cores_come_before_little_ones(machine):
    bound = machine({0: 446, 1: 446, 2: 1024, 3: 1024})
    assert agent.bind([0, 1, 2, 3], 2) == [2, 3] == bound


def test_the_idle_core_is_taken_and_the_busy_one_left(machine):
    bound = machine({0: 1024, 1: 1024}, busy={0: 5, 1: 0})
    assert agent.bind([0, 1], 1) == [1] == bound


def test_a_second_hyper_thread_is_taken_only_when_no_core_is_left(machine):
    pairs = {0: "0,2", 2: "0,2", 1: "1,3", 3: "1,3"}
    machine(dict.fromkeys(range(4), 1024), pairs)
    assert agent.bind([0, 1, 2, 3], 2) == [0, 1]
    assert agent.siblings(0) == {0, 2}


def test_three_threads_on_two_cores_with_hyper_threads_fill_both_cores_first(machine):
    machine(dict.fromkeys(range(4), 1024), {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    chosen = agent.bind([0, 1, 2, 3], 3)
    assert len(chosen) == 3
    assert {0, 2} <= set(chosen)


def test_as_many_threads_as_cores_may_run_on_all_of_them(machine):
    bound = machine({0: 1024, 1: 1024})
    assert agent.bind([0, 1], 2) == [0, 1] == bound
    assert agent.bind([], 2) == []  # a system that keeps nobody on a core


def test_throttling_is_counted_where_the_hardware_counts_it(tmp_path):
    assert agent.throttle_count(str(tmp_path)) is None
    for core, count in ((0, 3), (1, 4)):
        folder = tmp_path / "devices/system/cpu" / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(str(count))
    for number, (kind, changes) in enumerate((("thermal-cpufreq-0", 5), ("pwm-fan", 100))):
        folder = tmp_path / "class/thermal" / f"cooling_device{number}"
        (folder / "stats").mkdir(parents=True)
        (folder / "type").write_text(kind)
        (folder / "stats" / "total_trans").write_text(str(changes))
    assert agent.throttle_count(str(tmp_path)) == 3 + 4 + 5  # a fan that spins up throttles nothing


@pytest.mark.parametrize(("bits", "held"), [("50000", False), ("50005", True), ("0", False), ("4", True)], ids=["once", "now too", "never", "now"])
def test_a_raspberry_pi_is_asked_for_now_and_not_for_once(tmp_path, bits, held):
    assert agent.throttled_now(str(tmp_path)) is None
    folder = tmp_path / "devices/platform/soc/soc:firmware"
    folder.mkdir(parents=True)
    (folder / "get_throttled").write_text(bits)
    assert agent.throttled_now(str(tmp_path)) is held


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs Linux's /proc")
def test_the_watch_sees_whoever_else_computes_on_our_cores():
    core = min(os.sched_getaffinity(0))
    script = f"import os, time\nos.sched_setaffinity(0, {{{core}}})\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", script]) as other:
        try:
            agent.time.sleep(0.2)
            watch = agent.Watch([core])
            agent.time.sleep(0.5)
            found = watch.conditions()
        finally:
            other.kill()
    assert found["cores"] == [core]
    assert found["others_share"] > 0.2  # at least its part of a core that others may want, too
    assert 0 <= found["stolen_share"] <= 1
    assert found["switches_waiting"] >= 1  # this process slept
    assert found["seconds"] >= 0.5
