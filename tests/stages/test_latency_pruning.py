import json
from dataclasses import replace

import pytest
import torch

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.networks import build_network, load_network, save_network
from kdpipe.foundation.randomness import stream
from kdpipe.stages.file_latency import int8_file
from kdpipe.stages.latency_pruning import DECISIONS_FILE
from kdpipe.stages.latency_table import FOLDER
from kdpipe.stages.objectives.plain import Plain
from kdpipe.stages.prune import PruneConfig, run
from kdpipe.targets.devices.device import Machine
from kdpipe.targets.profile import load_profile


@pytest.fixture
def profile():
    return load_profile("cpu", at="test")


@pytest.fixture
def with_student(inputs, tmp_path, digits, still_task):
    """Three convolutions of 32, 48 and 32 channels."""
    spec = still_task.network_spec("cnn-small", {"channels": [32, 48, 32]}, digits, at="test")
    save_network(build_network(spec, stream(0, "test")), tmp_path / "distill")
    return replace(inputs, artifacts={"distill": tmp_path / "distill", "teacher": tmp_path / "distill"})


@pytest.fixture
def pruned(with_student, context, tmp_path, blocks, profile):
    """`pruned("out", speedup=1.5, …)`: the folder that the stage leaves, measured by the board that works in blocks."""

    def make(name="out", *, progress=None, on=blocks, **keys):
        (tmp_path / name).mkdir(exist_ok=True)
        config = PruneConfig.model_validate({"epochs": 1, "steps": 1, "batch_size": 64, "measured_on": "cpu", "importance_batches": 2, **keys})
        machine = Machine(on.name, _Settings(on), on.identity())
        config = config.model_copy(update={"objective": Plain(), "profile": profile, "machine": machine})
        return run(with_student, config, replace(context, folder=tmp_path / name, **({"progress": progress} if progress else {})))

    return make


class _Settings:
    def __init__(self, blocks):
        self.blocks = blocks

    def device(self, name, project):
        return self.blocks


def report_of(folder):
    return json.loads((folder / "pruning.json").read_text())


def file_ns(folder, inputs, profile, tmp_path):
    import blocks_device

    path = tmp_path / "whole.onnx"
    path.write_bytes(int8_file(load_network(folder), inputs.data.train, profile))
    return blocks_device.file_ns(path)


@pytest.mark.slow
def test_the_file_is_as_fast_as_asked_for_its_widths_fill_the_kernels_blocks_and_all_is_written_down(pruned, with_student, profile, tmp_path, listener, law):
    folder = pruned(speedup=1.8)
    latency = report_of(folder)["latency"]
    before, after = (file_ns(path, with_student, profile, tmp_path) for path in (tmp_path / "distill", folder))
    assert 1.8 <= before / after < 3.2  # a block of sixteen channels is the finest cut that saves anything
    assert latency["before"]["p50"]["value_ms"] == pytest.approx(before / 1e6, rel=1e-3)
    assert latency["after"]["p50"]["value_ms"] == pytest.approx(after / 1e6, rel=1e-3)
    assert (latency["goal"], latency["target"], latency["device"]["name"]) == ("speedup = 1.8", "cpu", "board")
    assert (latency["runtime"], latency["batch"], latency["threads"]) == ("onnxruntime 1.32.0", 1, 1)
    [step] = latency["steps"]
    assert step["measured"]["ratio"]["value_ms"] <= 1 / 1.8
    for attempt in step["attempts"]:
        took = attempt["measured"]["ratio"]["value_ms"] * latency["before"]["p50"]["value_ms"]
        assert attempt["error"] == pytest.approx(took / attempt["predicted_ms"] - 1)
        assert abs(attempt["error"]) < 0.05  # the board adds up as the table does
    judged = [attempt["validation"] for attempt in step["attempts"] if attempt["validation"] is not None]
    assert len(judged) != 1  # none, where all ways chose alike; else one for each that differs
    chosen = [attempt for attempt in step["attempts"] if attempt["measured"] == step["measured"]]
    assert any((attempt["removed"], attempt["validation"]) == (report_of(folder)["steps"][0]["removed"], max(judged, default=None)) for attempt in chosen)
    first, second, third = (layer.out_channels for layer in load_network(folder).module.modules() if isinstance(layer, torch.nn.Conv2d))

    def took_ns(a, b, c):
        return law(64, 9, 1, a) + law(16, 9, a, b) + law(16, 9, b, c) + law(1, 1, c, 10)

    for wider in ((first + 4, second, third), (first, second + 4, third), (first, second, third + 4)):
        assert took_ns(*wider) > took_ns(first, second, third)  # no block of a kernel is left half empty
    assert any("as fast; chosen by" in line for line in listener.said)
    assert sorted(path.name for path in folder.iterdir()) == ["history.json", "network.json", "pruning.json", "weights.safetensors"]


@pytest.mark.slow
def test_several_steps_each_cut_the_same_factor_to_a_latency(pruned):
    latency = report_of(pruned(latency_ms=0.02, steps=2))["latency"]
    before = latency["before"]["p50"]["value_ms"]
    assert [step["goal_ms"] for step in latency["steps"]] == pytest.approx([(before * 0.02) ** 0.5, 0.02])
    assert latency["steps"][1]["measured"]["p50"]["value_ms"] <= 0.02


@pytest.mark.slow
def test_a_machine_that_slows_down_is_not_taken_for_a_slow_network(pruned, blocks):
    fast = report_of(pruned("fast", speedup=1.8))
    begun = blocks.ask

    def slower(*arguments, **keys):
        blocks.slower *= 1.3
        return begun(*arguments, **keys)

    blocks.ask = slower
    assert report_of(pruned("slow", speedup=1.8))["layers"] == fast["layers"]


@pytest.mark.parametrize(
    ("goal", "message", "do"),
    [
        ({"latency_ms": 0.004}, "latency_ms = 0.004 cannot be reached: the least is 0.0", "raise latency_ms, or raise max_ratio (now 0.5)"),
        pytest.param({"speedup": 50}, "speedup = 50 cannot be reached: at most ", "lower speedup, or raise max_ratio (now 0.5)", marks=pytest.mark.slow),
    ],
    ids=["latency_ms", "speedup"],
)
def test_a_goal_out_of_reach_is_told_with_the_least_that_is(pruned, goal, message, do):
    with pytest.raises(ConfigError) as caught:
        pruned(max_ratio=0.5, **goal)
    problem = caught.value.problems[0]
    assert problem.message.startswith(message)
    assert problem.message.endswith("on board (onnxruntime 1.32.0, batch 1, 1 thread)")
    assert problem.at == f"[prune] {next(iter(goal))}"
    assert problem.do == f"{do}; layers that stay whole: body.linear: its channels are the network's outputs"


def test_a_goal_that_the_student_meets_already_is_no_pruning(pruned):
    with pytest.raises(ConfigError) as caught:
        pruned(latency_ms=100.0)
    problem = caught.value.problems[0]
    assert problem.message.startswith("latency_ms = 100 asks for nothing: unpruned the int8 file takes 0.")
    assert problem.at == "[prune] latency_ms"
    assert problem.do.startswith("lower latency_ms below 0.")


@pytest.mark.slow
def test_stopped_while_it_trains_it_goes_on_to_the_same_files_without_measuring_again(pruned, stopping, blocks):
    whole = pruned("whole", speedup=1.8, epochs=2)
    with pytest.raises(stopping.Stopped):
        pruned("stopped", speedup=1.8, epochs=2, progress=_after_decision(stopping))
    asked = len(blocks.asked)
    stopped = pruned("stopped", speedup=1.8, epochs=2)
    assert len(blocks.asked) == asked
    for name in ("weights.safetensors", "network.json", "pruning.json", "history.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name


def _after_decision(stopping):
    """A progress that stops at the second batch of the step's own training."""

    class Late(stopping):
        def __call__(self, items, label, *, total=None, unit="batch"):
            return super().__call__(items, label, total=total, unit=unit) if label.startswith("prune/step-1 ") else items

    return Late(1)


@pytest.mark.slow
def test_stopped_while_choices_are_judged_it_goes_on_with_the_same_ones_without_measuring_again(pruned, stopping, blocks, listener):
    whole = pruned("whole", speedup=1.5)
    assert "choices of channels judged" in "\n".join(listener.said)
    with pytest.raises(stopping.Stopped):
        pruned("stopped", speedup=1.5, progress=_within_the_second_trial(stopping))
    asked = len(blocks.asked)
    stopped = pruned("stopped", speedup=1.5)
    assert len(blocks.asked) == asked
    for name in ("weights.safetensors", "network.json", "pruning.json", "history.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name


def _within_the_second_trial(stopping):
    """A progress that stops at the second batch of the second short training."""

    class Judging(stopping):
        trials = 0

        def __call__(self, items, label, *, total=None, unit="batch"):
            if not label.startswith("prune/step-1/trial"):
                return items
            self.trials += 1
            return super().__call__(items, label, total=total, unit=unit) if self.trials == 2 else items

    return Judging(1)


@pytest.mark.slow
def test_a_second_pruning_measures_no_layer_twice_and_damaged_decisions_are_made_again(pruned, blocks, tmp_path, listener):
    pruned("first", speedup=1.5)
    assert [models for models in blocks.asked if models == ("1", "5")]
    blocks.asked.clear()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / DECISIONS_FILE).write_text("{")
    pruned("second", speedup=2.0)
    assert not [models for models in blocks.asked if models == ("1", "5")]
    assert "prune: what was measured before the stop cannot be read, measuring again" in listener.said


@pytest.mark.slow
def test_a_device_that_breaks_off_leaves_what_was_measured(pruned, blocks, tmp_path):
    blocks.breaks_after = 30
    with pytest.raises(UnavailableError, match="the link was cut"):
        pruned(speedup=1.5)
    blocks.breaks_after = None
    [table] = (tmp_path / FOLDER).iterdir()
    known = len(json.loads(table.read_text())["entries"])
    assert known >= 24
    blocks.asked.clear()
    pruned(speedup=1.5)
    assert len([models for models in blocks.asked if models == ("1", "5")]) == len(json.loads(table.read_text())["entries"]) - known


def test_a_device_that_changed_since_the_plan_is_not_measured(pruned, blocks, with_student):
    planned = blocks.identity()
    blocks.version = "1.33.0"
    with pytest.raises(UnavailableError, match=r"device board changed since the build was planned: onnxruntime 1\.32\.0 → 1\.33\.0"):
        pruned(speedup=1.5, on=_Replaced(blocks, planned))


class _Replaced:
    """A board that was another when the build was planned."""

    def __init__(self, blocks, identity):
        self._blocks, self._identity = blocks, identity

    def identity(self):
        return self._identity

    def __getattr__(self, name):
        return getattr(self._blocks, name)


def test_an_emulated_device_gives_no_latency_to_prune_by(pruned, blocks):
    blocks.no_latency = "not measured: the CPU is emulated"
    with pytest.raises(UnavailableError) as caught:
        pruned(speedup=1.5)
    problem = caught.value.problems[0]
    assert problem.message == "pruning by the latency of profile cpu needs its device: not measured: the CPU is emulated"
    assert problem.at == "[prune] measured_on"
    assert "or prune by speedup alone" in problem.do


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"speedup": 2.0, "latency_ms": 1.0}, "give exactly one of speedup, channels and latency_ms"),
        ({"measured_on": "cpu"}, "give exactly one of speedup, channels and latency_ms"),
        ({"channels": 0.5, "measured_on": "cpu"}, "measured_on goes with speedup or latency_ms"),
    ],
    ids=["two goals", "no goal", "channels"],
)
def test_contradicting_goals_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig.model_validate(keys)
