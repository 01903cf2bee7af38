import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices import emulated, userland
from kdpipe.targets.devices.device import identity_of, why_no_latency
from kdpipe.targets.devices.emulated import CPUS, Emulated
from kdpipe.targets.devices.messages import PredictRequest, StartRequest
from kdpipe.targets.devices.userland import PYTHON, cache_folder
from kdpipe.targets.runtimes.runtime import open_session

ARM = cache_folder("aarch64")
needs_x86 = pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs an emulator: apt-get install qemu-user-static")
needs_arm = pytest.mark.skipif(
    shutil.which("qemu-aarch64-static") is None or not (ARM / PYTHON).exists(),
    reason="needs an emulated ARM Python: apt-get install qemu-user-static, then kdpipe devices add a72 --cpu cortex-a72",
)


def device(cpu: str, **more: object):
    return Emulated.model_validate({"kind": "emulated", "cpu": cpu, **more}).device("chip", Path())


def the_problem(caught):
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    return problem


@pytest.mark.parametrize("command", ["bench", "start", "energy"])
def test_time_is_never_measured_on_an_emulated_chip(command):
    request = StartRequest(runtime="onnxruntime", model="m", threads=1, batch=1, inputs="i")
    with pytest.raises(UnavailableError) as caught:
        list(device("cortex-a72").ask(command, request, limit_seconds=10))
    problem = the_problem(caught)
    assert problem.message == "not measured: device chip is emulated (qemu's cortex-a72), and an emulator's time says nothing of the chip's"
    assert problem.do == "measure on a board: kdpipe devices add NAME --host USER@HOST"


def test_without_an_emulator_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(emulated.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        device("cortex-a72").facts()
    problem = the_problem(caught)
    assert problem.message == "qemu-aarch64 is not installed on this machine"
    assert problem.do == "apt-get install qemu-user-static"


def test_without_its_userland_it_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(emulated.shutil, "which", lambda name: "/usr/bin/qemu")
    with pytest.raises(UnavailableError) as caught:
        device("cortex-a72", userland=tmp_path).facts()
    problem = the_problem(caught)
    assert problem.message == f"there is no ARM Python in {tmp_path}"
    assert problem.do == "kdpipe devices add chip"


def test_a_machine_that_cannot_prepare_one_says_where_to(monkeypatch, tmp_path):
    monkeypatch.setattr(userland.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        userland.prepare(tmp_path / "arm", print)
    problem = the_problem(caught)
    assert problem.message == "apt-get is not on this machine"
    assert problem.do == "prepare it on Debian or Ubuntu, copy the folder, and name it: [devices.NAME] userland"
    assert not (tmp_path / "arm").exists()


@needs_x86
@pytest.mark.device
@pytest.mark.slow
def test_an_x86_chip_without_vnni_computes_what_the_host_does_where_nothing_saturates(files, samples):
    haswell = device("Haswell")
    facts = haswell.facts()
    assert set(facts.instruction_sets) == {"x86-64", "sse4.1", "avx", "avx2", "fma"}
    request = PredictRequest(runtime="onnxruntime", model=files / "u8.onnx", threads=1)
    (there,) = haswell.predict(request, [samples], limit_seconds=300)
    with open_session("onnxruntime", files / "u8.onnx") as session:
        assert np.abs(there - session(samples)).max() <= 1e-5  # 7-bit weights: integer sums are exact, the float ends are not always


@needs_arm
@pytest.mark.device
@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "dot_product"), [("cortex-a72", False), ("cortex-a76", True)])
def test_an_arm_chip_runs_the_runtime_s_arm_build(files, samples, cpu, dot_product):
    chip = device(cpu)
    facts = chip.facts()
    assert (facts.architecture, "asimddp" in facts.instruction_sets) == ("aarch64", dot_product)
    assert CPUS[cpu].part in facts.cpu
    request = PredictRequest(runtime="onnxruntime", model=files / "s8-one.onnx", threads=1)
    (there,) = chip.predict(request, [samples], limit_seconds=300)
    with open_session("onnxruntime", files / "s8-one.onnx") as session:
        assert (there.argmax(1) == session(samples).argmax(1)).mean() >= 0.95


@needs_x86
@pytest.mark.device
@pytest.mark.slow
def test_a_board_whose_programs_turn_out_to_be_emulated_gives_accuracy_and_no_latency(board, pi, files, samples, tmp_path):
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    wrapper = tmp_path / "python"
    site = Path(np.__file__).parents[1]
    wrapper.write_text(f'#!/bin/sh\nexec qemu-x86_64-static -0 "$0" -E PYTHONPATH={site} -cpu Haswell {python} "$@" 2>/dev/null\n')
    wrapper.chmod(0o755)
    container = board.settings(python=str(wrapper)).device("pi", pi.project)
    with container.connected():
        facts = container.facts()
        (there,) = container.predict(PredictRequest(runtime="onnxruntime", model=files / "u8.onnx", threads=1), [samples], limit_seconds=300)
    assert facts.emulator == "qemu-x86_64-static"
    assert identity_of(facts)["emulator"] == "qemu-x86_64-static"
    told = why_no_latency(container, facts)
    assert told == "not measured: what runs on device pi is emulated (qemu-x86_64-static), and an emulator's time says nothing of the chip's"
    assert why_no_latency(pi, facts.model_copy(update={"emulator": None})) is None
    with open_session("onnxruntime", files / "u8.onnx") as session:
        assert np.abs(there - session(samples)).max() <= 1e-5
