import time

import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.agent import EnergyCounter, find_counter
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import EnergyMeasured, EnergyRequest, ModelFile, NoEnergy
from kdpipe.targets.energy import energy

REQUEST = EnergyRequest(runtime="onnxruntime", threads=1, batch=1, inputs="i", models=(ModelFile(name="int8", path="m"),), seconds=0.2)


class Told:
    """A device that answers with these messages."""

    name = "pi"

    def __init__(self, *messages) -> None:
        self.messages = messages

    def ask(self, command, request, *, limit_seconds):
        assert command == "energy"
        return iter(self.messages)


def rounds(model, *values):
    return EnergyMeasured(kind="energy", model=model, counter="RAPL package energy", rounds=values)


def test_the_energy_of_a_run_is_the_median_round_and_rest_is_told_beside_it():
    device = Told(rounds(None, (1.0, 20, 0.2), (1.2, 20, 0.2), (0.8, 20, 0.2)), rounds("int8", (3.0, 100, 0.2), (2.0, 100, 0.2), (2.5, 100, 0.2)))
    (found,) = energy(device, REQUEST, ("int8",), runtime_name="onnxruntime 1 CPU")
    assert (found.millijoules, found.lowest_millijoules, found.highest_millijoules, found.rounds) == (25.0, 20.0, 30.0, 3)
    assert found.rest_watts == pytest.approx(5.0)


def test_no_counter_is_no_energy_and_says_why():
    assert energy(Told(NoEnergy(kind="no-energy", reason="not measured: none")), REQUEST, ("int8",), runtime_name="x") == "not measured: none"
    still = Told(rounds(None, (0.0, 5, 0.2)), rounds("int8", (0.0, 5, 0.2)))
    assert energy(still, REQUEST, ("int8",), runtime_name="x") == "not measured: RAPL package energy did not move"


@pytest.mark.parametrize(
    "messages", [(), (rounds("int8", (1.0, 5, 0.2)),), (rounds(None, (1.0, 5, 0.2)), rounds("int8", (1.0, 0, 0.2)))], ids=["none", "no rest", "no run"]
)
def test_energy_that_is_not_that_of_every_model_is_refused(messages):
    with pytest.raises(UnavailableError) as caught:
        energy(Told(*messages), REQUEST, ("int8",), runtime_name="x")
    (problem,) = caught.value.problems
    assert (problem.message, problem.at) == ("the device's energy is not that of every model", "device pi")
    assert problem.do == "run it again; if it stays, the agent there is damaged"


def counter(folder, *, parts):
    for name, value in parts.items():
        path = folder / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(value))
    return find_counter(str(folder))


def test_packages_count_and_their_parts_do_not(tmp_path):
    found = counter(tmp_path, parts={"powercap/intel-rapl:0/energy_uj": 1, "powercap/intel-rapl:1/energy_uj": 1, "powercap/intel-rapl:0:0/energy_uj": 1})
    assert (found.name, len(found.energy_files)) == ("RAPL package energy", 2)
    assert counter(tmp_path / "a", parts={"hwmon/hwmon0/energy1_input": 7}).name == "hwmon energy meter"
    assert counter(tmp_path / "b", parts={"hwmon/hwmon0/power1_input": 7}).power_files
    assert counter(tmp_path / "c", parts={"hwmon/hwmon0/temp1_input": 7}).startswith("not measured: no energy counter (")
    assert counter(tmp_path / "d", parts={"powercap/intel-rapl:0/energy_uj": "x"}).endswith("intel-rapl:0/energy_uj cannot be read by this user")


def test_a_counter_that_begins_again_is_not_negative(tmp_path):
    path = tmp_path / "energy_uj"
    path.write_text("900000")
    (tmp_path / "max_energy_range_uj").write_text("1000000")
    joules, runs, seconds = EnergyCounter("RAPL", [str(path)], []).spent(lambda batch: (path.write_text("100000"), time.sleep(0.01)), [None], 0.02)
    assert joules == pytest.approx(0.2)
    assert runs >= 1
    assert seconds >= 0.02


def test_a_power_sensor_is_sampled_while_it_runs(tmp_path):
    path = tmp_path / "power1_input"
    path.write_text("5000000")  # 5 W
    joules, _, seconds = EnergyCounter("power", [], [str(path)]).spent(lambda batch: time.sleep(0.01), [None], 0.2)
    assert joules == pytest.approx(5 * seconds)


def test_this_machine_is_asked_in_a_process_of_its_own(files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    request = REQUEST.model_copy(
        update={"inputs": tmp_path / "inputs.npy", "models": (ModelFile(name="int8", path=files / "u8.onnx"),), "rounds": 2, "seconds": 0.1}
    )
    found = energy(LocalDevice(), request, ("int8",), runtime_name="onnxruntime x CPU")
    if isinstance(found, str):
        assert found.startswith("not measured: ")
        assert isinstance(find_counter(), str) or "did not move" in found
    else:
        assert found[0].millijoules > 0
