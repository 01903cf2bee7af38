import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import load_network, save_network
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.macs import count_macs, count_parameters
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare
from kdpipe.stages.objectives.mtard import Mtard
from kdpipe.stages.objectives.plain import Plain
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.stages.prune import PruneConfig, run


def config(objective=None, **keys):
    return PruneConfig.model_validate({"epochs": 2, "steps": 2, "batch_size": 64, **keys}).model_copy(update={"objective": objective or Plain()})


@pytest.fixture
def with_artifacts(inputs, tmp_path, tiny):
    save_network(tiny(width=1.0), tmp_path / "distill")
    save_network(tiny(seed=1, width=0.5), tmp_path / "teacher")
    return replace(inputs, artifacts={"distill": tmp_path / "distill", "teacher": tmp_path / "teacher"})


@pytest.fixture
def pruned(with_artifacts, context, tmp_path):
    """`pruned(config, name="out", progress=…)`: the folder that the stage leaves."""

    def make(config, name="out", **changed):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return run(with_artifacts, config, replace(context, folder=folder, **changed))

    return make


def test_the_speedup_is_reached_in_steps_and_told(pruned, with_artifacts, listener):
    folder = pruned(config(speedup=1.6))
    report = json.loads((folder / "pruning.json").read_text())
    network, whole = load_network(folder), load_network(with_artifacts.artifacts["distill"])
    macs = count_macs(network.module, (1, 8, 8))
    assert 1.6 <= report["speedup"] == report["before"]["macs"] / macs < 1.75  # four channels of sixteen are the finest cut
    assert report["after"] == {"macs": macs, "parameters": count_parameters(network.module)}
    assert report["before"]["parameters"] == count_parameters(whole.module)
    first, last = report["steps"]
    assert 1.6**0.5 <= first["speedup"] < last["speedup"] == report["speedup"]
    assert report["whole"] == {"body.linear": "its channels are the network's outputs"}
    assert any("body.linear (its channels are the network's outputs)" in line for line in listener.said)
    assert sorted(path.name for path in folder.iterdir()) == ["history.json", "network.json", "pruning.json", "weights.safetensors"]
    assert [entry["label"] for entry in json.loads((folder / "history.json").read_text())["trainings"]] == ["prune/step-1", "prune/step-2"]


def test_the_head_is_whole_and_widths_are_multiples_within_the_limit(pruned):
    network = load_network(pruned(config(speedup=3.0, round_to=2, max_ratio=0.5))).module
    assert network.get_submodule("body.linear").out_features == 10
    whole = {"conv1": 16, "layer1": 16, "layer2": 32, "layer3": 64}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            original = whole[name.split(".")[1]]
            assert layer.out_channels % 2 == 0
            assert layer.out_channels >= original / 2


def test_a_share_of_channels_can_be_the_goal(pruned):
    report = json.loads((pruned(config(channels=0.3, importance="magnitude", steps=1)) / "pruning.json").read_text())
    gone = sum(sum(step["removed"].values()) for step in report["steps"])
    assert 0.3 <= gone / (16 + 16 + 32 + 32 + 64 + 64) < 0.33


def test_a_network_pruned_before_is_pruned_further(pruned, with_artifacts, context, tmp_path):
    first = pruned(config(speedup=1.3, steps=1), "first")
    (tmp_path / "second").mkdir()
    inputs = replace(with_artifacts, artifacts={**with_artifacts.artifacts, "distill": first})
    second = load_network(run(inputs, config(speedup=1.3, steps=1), replace(context, folder=tmp_path / "second")))
    assert count_macs(second.module, (1, 8, 8)) <= count_macs(load_network(first).module, (1, 8, 8)) / 1.3
    x = torch.from_numpy(with_artifacts.data.train.read(np.arange(4)))
    assert torch.equal(load_network(tmp_path / "second").module(x), second.module(x))


def test_before_fine_tuning_the_plan_alone_decides(pruned):
    folder = pruned(config(speedup=1.4, steps=1, learning_rate=1e-12, weight_decay=0, epochs=1))
    plan = load_network(folder).spec.pruning
    assert plan.layers
    for kept in plan.layers.values():
        for side in (kept.inputs, kept.outputs):
            assert side is None or list(side) == sorted(set(side))


@pytest.mark.parametrize("objective", [Kd(), Rslad(attack=Attack(epsilon=0.1, steps=1))], ids=["kd", "rslad"])
def test_stopped_in_any_step_it_goes_on_to_the_same_files(objective, pruned, stopping):
    cut = config(objective, speedup=1.6, epochs=4, importance_batches=2)
    whole = pruned(cut, "whole")
    for batches in (5, 7):  # each epoch has three; the teacher's table one, once a start
        with pytest.raises(stopping.Stopped):
            pruned(cut, "stopped", progress=stopping(batches))
    stopped = pruned(cut, "stopped")
    for name in ("weights.safetensors", "network.json", "pruning.json", "history.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name


@pytest.mark.parametrize(
    ("objective", "mixture"),
    [(Mtard(attack=Attack(epsilon=0.1, steps=1), balance_rate=0.5), None), (Kd(), Mixture(weights="learned", gate="wrong"))],
    ids=["mtard", "a mixture with learned weights"],
)
def test_with_several_teachers_it_scores_and_fine_tunes_and_goes_on_after_a_stop_to_the_same_files(
    objective, mixture, tiny, with_artifacts, context, tmp_path, stopping
):
    further = save_network(tiny(seed=2, width=0.5), tmp_path / "further")
    inputs = replace(with_artifacts, artifacts={**with_artifacts.artifacts, "teacher-further": further})
    teachers = (TeacherShare(name="further", role="natural"),)
    cut = config(objective, speedup=1.4, steps=1, epochs=2, importance_batches=2).model_copy(update={"teachers": teachers, "mixture": mixture})

    def pruned(name, **changed):
        (tmp_path / name).mkdir(exist_ok=True)
        return run(inputs, cut, replace(context, folder=tmp_path / name, **changed))

    whole = pruned("whole")
    with pytest.raises(stopping.Stopped):
        pruned("stopped", progress=stopping(5))
    stopped = pruned("stopped")
    for name in ("weights.safetensors", "network.json", "pruning.json", "history.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name
    terms = {term for training in json.loads((whole / "history.json").read_text())["trainings"] for epoch in training["epochs"] for term in epoch["loss"]}
    assert terms >= ({"natural_share"} if mixture is None else {"weight of further", "from labels"})


def test_a_speedup_out_of_reach_is_told_with_what_is_possible(pruned):
    with pytest.raises(ConfigError) as caught:
        pruned(config(speedup=50.0, max_ratio=0.5))
    problem = caught.value.problems[0]
    assert problem.message.startswith("speedup = 50 cannot be reached: at most 3.")
    assert problem.message.endswith("with max_ratio = 0.5 and round_to = 4")
    assert problem.at == "[prune] speedup"
    assert problem.do.startswith("lower speedup, raise max_ratio or lower round_to; layers that stay whole: body.linear: ")


def test_channels_out_of_reach_are_told_as_a_share(pruned):
    with pytest.raises(ConfigError, match=r"channels = 0.9 cannot be reached: at most 0\.\d+ with max_ratio = 0.5") as caught:
        pruned(config(channels=0.9, max_ratio=0.5, steps=1))
    assert caught.value.problems[0].at == "[prune] channels"


def test_ignored_layers_stay_whole_by_their_own_names(pruned):
    folder = pruned(config(speedup=1.3, steps=1, ignored_layers=["layer3"]))
    network = load_network(folder).module
    assert network.get_submodule("body.layer3.0.conv2").out_channels == 64
    assert network.get_submodule("body.layer3.0.conv1").out_channels == 64
    assert json.loads((folder / "pruning.json").read_text())["whole"]["body.layer3.0.conv1"] == "ignored by configuration"


def test_an_ignored_layer_that_is_not_there_is_answered_with_the_nearest(pruned):
    with pytest.raises(ConfigError) as caught:
        pruned(config(speedup=1.3, ignored_layers=["layer3.0.con1"]))
    problem = caught.value.problems[0]
    assert problem.message == "no layer 'layer3.0.con1' in the student"
    assert problem.at == "[prune] ignored_layers"
    assert problem.do == "did you mean 'layer3.0.conv1'?"


@pytest.mark.parametrize("goal", [{}, {"speedup": 1.5, "channels": 0.3}], ids=["none", "both"])
def test_exactly_one_goal_is_given(goal):
    with pytest.raises(ValidationError, match="give exactly one of speedup, channels and latency_ms"):
        PruneConfig.model_validate(goal)


def test_the_epochs_are_shared_between_the_steps(pruned):
    trainings = json.loads((pruned(config(speedup=1.5, steps=3, epochs=5)) / "history.json").read_text())["trainings"]
    assert [len(training["epochs"]) for training in trainings] == [1, 2, 2]
