"""`kdpipe bench`: one file in several places, several files in one; and whatever goes wrong on a board ends with 4 and no number."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import InputContract, NetworkSpec, build_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.randomness import stream
from kdpipe.pipeline import cli
from kdpipe.pipeline.benching import Asked, Benched, bench
from kdpipe.pipeline.progress import progress_for
from kdpipe.targets.devices import agent
from kdpipe.targets.profile import load_profile

AGENT = Path(agent.__file__).read_text()
N_TEST = 539  # of the digits


@pytest.fixture(scope="module")
def model() -> bytes:
    """An ONNX file of a small network for the digits."""
    spec = NetworkSpec(
        factory="kdpipe.tasks.networks.cnn:cnn",
        arguments={"in_channels": 1, "classes": 10, "image_size": 8, "channels": [4, 4]},
        contract=InputContract(shape=(1, 8, 8), labels=tuple("0123456789")),
        mean=(0.3,),
        std=(0.4,),
    )
    return to_bytes(to_onnx(build_network(spec, stream(0, "test")).module.eval(), (1, 8, 8), opset=17, static_batch=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kdpipe.toml").write_text('[project]\nname = "p"\n[task]\ndata = "digits"\n[targets.arm]\n')
    return tmp_path


@pytest.fixture
def bundle(folder: Path, model: bytes) -> Callable[..., Path]:
    """A bundle as far as `kdpipe bench` reads it: the file, and in the manifest which data and which profile."""

    def make(target: str, runtimes: tuple[str, ...] = ("onnxruntime",), data: str = "digest") -> Path:
        made = folder / "dist" / "p" / target
        made.mkdir(parents=True)
        (made / "model.onnx").write_bytes(model)
        profile = load_profile("cpu", at="test").model_dump(mode="json")
        profile["runtimes"] = [need for need in profile["runtimes"] if need["name"] in runtimes]
        values = {"project": {"seed": 0}, "task": {"data": "digits"}, "evaluate": {}, "targets": {target: {"profile": profile}}}
        manifest = {"project": "p", "target": target, "data": data, "steps": {}, "machine": {"threads": 1}, "configuration": {"values": values}}
        (made / "manifest.json").write_text(json.dumps(manifest))
        (made / "scorecard.json").write_text('{"scorecards": []}')
        return made

    return make


@pytest.fixture
def board_of(folder: Path, board: Any) -> Callable[..., Any]:
    """The board as device `pi` of the project, its key pinned."""

    def add(**changed: object) -> Any:
        settings = board.settings(**changed)
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.model_dump(mode="json", exclude_none=True).items()]
        (folder / "kdpipe.toml").write_text((folder / "kdpipe.toml").read_text() + "[devices.pi]\n" + "\n".join(lines) + "\n")
        device = settings.device("pi", folder)
        device.pin(device.presented_key())
        return device

    return add


def benched(*bundles: Path, devices: tuple[str, ...] = ("host",)) -> Benched:
    with progress_for(as_json=True) as progress:
        return bench(list(bundles), Asked(devices=devices, seconds=0.1), progress)


@pytest.mark.slow
def test_one_file_is_judged_in_every_place_and_timed_where_time_counts(bundle: Any, board_of: Any) -> None:
    board_of()
    result = benched(bundle("arm", ("onnxruntime", "openvino")), devices=("host", "pi"))
    assert [facts.name for facts in result.devices] == ["host", "pi"]
    places = [(row.quality.device.name, row.quality.runtime.split()[0]) for row in result.accuracies]
    assert places == [(device, runtime) for device in ("host", "pi") for runtime in ("onnxruntime", "openvino")]
    assert {row.quality.clean.n for row in result.accuracies} == {N_TEST}
    assert all(row.quality.agreement.value == 100 for row in result.accuracies)
    (spread,) = result.spreads
    assert (spread.places, spread.value) == (4, 0)
    assert -1 < spread.low <= 0 <= spread.high < 1
    assert {(it.device, it.latency.runtime.split()[0]) for it in result.latencies} == set(places)
    assert all(it.latency.p90.value_ms is not None and it.ratio_to_first is None for it in result.latencies)
    assert all(it.start.peak_memory_bytes > 10e6 and it.start.load_ms > 0 for it in result.starts)
    assert len(result.energies) == 4 or [line for line in result.not_measured if line.startswith("energy on pi: not measured: ")]


@pytest.mark.slow
def test_several_files_are_measured_against_the_first_in_one_run(bundle: Any) -> None:
    result = benched(bundle("arm"), bundle("cpu"))
    first, second = result.latencies
    assert (first.bundle, second.bundle) == ("p/arm", "p/cpu")
    assert first.ratio_to_first is None
    ratio = second.ratio_to_first
    assert ratio is not None
    assert ratio.value_ms is not None
    assert ratio.low_ms <= ratio.value_ms <= ratio.high_ms
    assert result.spreads == ()  # one place has no spread


@pytest.mark.parametrize(
    ("names", "message", "do"),
    [
        (("arm", "nothing"), "no bundle here", "name a folder that kdpipe build wrote: dist/PROJECT/TARGET; of two files: kdpipe compare --latency"),
        (("nothing",), "no bundle here", "name a folder that kdpipe build wrote: dist/PROJECT/TARGET; of two files: kdpipe compare --latency"),
        (("arm", "other"), "it was built on other data than the first bundle", "measure it by itself"),
    ],
    ids=["no bundle", "no first bundle", "other data"],
)
def test_bundles_that_cannot_be_compared_are_refused(folder: Path, bundle: Any, names: tuple[str, ...], message: str, do: str) -> None:
    bundle("arm"), bundle("other", data="another")
    with pytest.raises(ConfigError) as caught:
        benched(*(folder / "dist" / "p" / name for name in names))
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.message, problem.do) == (2, message, do)


def test_the_same_bundle_twice_is_refused_by_whatever_path(folder: Path, bundle: Any) -> None:
    made = bundle("arm")
    again = folder / "dist" / ".." / "dist" / "p" / "arm"
    with pytest.raises(ConfigError) as caught:
        benched(made, again)
    problem = caught.value.problems[0]
    assert (problem.message, problem.at) == ("the same bundle twice", str(again))
    assert problem.do == "name it once; the first one is measured twice by itself"


def test_a_device_that_is_not_there_is_told_before_anything_runs(bundle: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        benched(bundle("arm"), devices=("pi",))
    assert caught.value.problems[0].message == "unknown device 'pi'"
    assert caught.value.problems[0].do == "devices: none yet; kdpipe devices add pi makes one"


SPOILED = """
honest_teller = _teller

def _teller(stream):
    tell = honest_teller(stream)

    def spoiled(kind, **content):
        if kind == "WHEN":
            DO
        tell(kind, **content)

    return spoiled

"""
CUT = "os.kill(int(open(f'/proc/{os.getppid()}/stat').read().split()[3]), 9); time.sleep(60)"  # sshd's process of this login: the keeper's parent
NANS = "content['float32'] = base64.b64encode(b'\\xff' * (content['shape'][0] * 40)).decode()"
# when a message of this kind is due, what is done instead, and what is told of it
FAULTS = {
    "the agent is killed": ("logits", "os.kill(os.getpid(), 9)", "the measuring process there ended early with status -9"),
    "the link is cut in the middle": ("logits", CUT, "the connection to the device was cut: "),
    "what comes is not JSON": ("logits", "stream.write('<html>502</html>\\n')", "the device's answer is not valid ("),
    "fewer logits than samples": ("logits", "content['shape'][0] -= 1", "the device's answer is not valid: ("),
    "logits that are no numbers": ("logits", NANS, "the device's answer is not valid: logits that are NaN or infinite"),
    "an answer without end": ("logits", "stream.write('x' * 300_000)", "the device's answer is larger than 0.2 MB"),
    "another version of the runtime": ("facts", "content['runtimes']['onnxruntime'] = '1.2.0'", "device pi has onnxruntime 1.2.0, "),
    "the clock jumps while measuring": ("elapsed", "content['ns'] += 3600 * 10**9", "the device's clock jumped while measuring: "),
    "times that cannot be": ("windows", "content['ns'] = [[10**15]]", "the device's times cannot be: "),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=pytest.mark.slow if when in ("elapsed", "windows") else ()) for name, (when, _, _) in FAULTS.items()]
)
def test_whatever_goes_wrong_on_a_board_ends_with_4_and_no_number(
    fault: str, bundle: Any, board_of: Any, agent_of: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    when, instead, message = FAULTS[fault]
    board_of()
    agent_of(AGENT.replace("def main(", SPOILED.replace("WHEN", when).replace("DO", instead) + "\ndef main(", 1))
    monkeypatch.setattr("kdpipe.targets.devices.link.LINE_BYTES", 200_000)
    arguments = ["bench", str(bundle("arm")), "--device", "pi", "--seconds", "0.1"]
    code = cli.told(lambda: cli.app(args=arguments, standalone_mode=False), as_json=False, debug=False)
    told = capsys.readouterr()
    assert (code, told.out) == (4, "")
    error = told.err[told.err.index("error: ") :]
    assert error.startswith(f"error: {message}")
    assert "\n  at:  " in error
    assert "\n  do:  " in error


def test_a_changed_host_key_ends_with_4_and_as_json_with_one_object(folder: Path, bundle: Any, board_of: Any, board: Any) -> None:
    device = board_of()
    device.pin(f"kdpipe-pi {(board.folder / 'stranger.pub').read_text().rsplit(' ', 1)[0]}")
    arguments = [sys.executable, "-m", "kdpipe.pipeline", "bench", str(bundle("arm")), "--device", "pi", "--json"]
    told = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert told.returncode == 4
    assert "is not the one that was pinned" in json.loads(told.stdout)["error"]["problems"][0]["message"]
