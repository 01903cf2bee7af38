import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer
from kdpipe.foundation.quantization.layers import FrozenLayer
from kdpipe.stages import qat
from kdpipe.stages.distill import DistillConfig
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.targets.profile import load_profile

PLAIN = parse_objective("plain", {}, at="test")


@pytest.fixture(scope="session")
def pruned_folder(taught):
    """A small residual network, trained on the digits until it is right more often than not."""
    return taught("resnet-8", {"width": 0.5}, begins="pruned", epochs=8)


@pytest.fixture
def cpu(inputs, pruned_folder):
    return replace(inputs, artifacts={"prune": pruned_folder, "teacher": pruned_folder}, profile=load_profile("cpu", at="test"))


def config(**changed):
    return QatConfig(**{"epochs": 3, "batch_size": 32, "objective": PLAIN, **changed})


def outcome(folder):
    return Outcome.model_validate(json.loads((folder / "quantization.json").read_text()))


def digests(folder):
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


class Killed(BaseException):
    """As a signal would end the process."""


def test_it_leaves_the_frozen_twin_and_beside_it_the_calibrated_one(cpu, context, digits):
    folder = qat.run(cpu, config(), context)
    assert sorted(path.name for path in folder.iterdir()) == ["history.json", "network.json", "ptq", "quantization.json", "weights.safetensors"]
    for made in (load_network(folder), load_network(folder / "ptq")):
        assert made.spec.quantization.batch_norm == "folded"
        assert made.spec.quantization.scheme == cpu.profile.scheme
        layers = [module for module in made.module.modules() if isinstance(module, FrozenLayer)]
        assert len(layers) == 10
        assert all(float((layer.weight / layer.weight_scale).abs().max()) < 63.01 for layer in layers)
    told = outcome(folder)
    assert told.float_network.clean_accuracy > 0.6
    assert abs(told.ptq.clean_accuracy - told.float_network.clean_accuracy) <= 0.05
    assert told.calibration_samples == 200  # the whole split: it has fewer than the profile asks for


def test_the_better_of_both_on_validation_is_kept(cpu, context):
    folder = qat.run(cpu, config(), context)
    told = outcome(folder)
    better = (told.qat.clean_accuracy, -told.qat.loss) >= (told.ptq.clean_accuracy, -told.ptq.loss)
    assert told.kept == ("qat" if better else "ptq")
    same = sha256_of(folder / "weights.safetensors") == sha256_of(folder / "ptq" / "weights.safetensors")
    assert same == (told.kept == "ptq")


def test_a_fine_tuning_that_makes_it_worse_is_not_kept(cpu, context, listener):
    """A learning rate at which three epochs hurt, but not sharply."""
    poor = config(epochs=1, learning_rate=0.02, weight_decay=0.9, momentum=0.0)
    folder = qat.run(cpu, poor, context)
    told = outcome(folder)
    assert (told.qat.clean_accuracy, -told.qat.loss) < (told.ptq.clean_accuracy, -told.ptq.loss)
    assert told.kept == "ptq"
    assert listener.said[-1].endswith("kept: calibrated only, it is better on validation")
    assert sha256_of(folder / "weights.safetensors") == sha256_of(folder / "ptq" / "weights.safetensors")


def test_without_epochs_it_only_calibrates(cpu, context):
    folder = qat.run(cpu, config(epochs=0), context)
    told = outcome(folder)
    assert (told.kept, told.qat) == ("ptq", None)
    assert json.loads((folder / "history.json").read_text()) == {"trainings": []}


def test_the_same_run_leaves_the_same_bytes(cpu, context):
    first = qat.run(cpu, config(epochs=2), replace(context, folder=_made(context.folder / "one")))
    second = qat.run(cpu, config(epochs=2), replace(context, folder=_made(context.folder / "two")))
    assert digests(first) == digests(second)


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_killed_in_any_epoch_it_goes_on_to_the_same_bytes(cpu, context, killed_in):
    class Killing:
        def __call__(self, items, label, *, total=None, unit="batch"):
            for number, item in enumerate(items):
                if label == f"qat {killed_in}/3" and number == 2:
                    raise Killed
                yield item

        def say(self, message):
            pass

    undisturbed = qat.run(cpu, config(), replace(context, folder=_made(context.folder / "undisturbed")))
    folder = _made(context.folder / "killed")
    with pytest.raises(Killed):
        qat.run(cpu, config(), replace(context, folder=folder, progress=Killing()))
    assert digests(qat.run(cpu, config(), replace(context, folder=folder))) == digests(undisturbed)


@pytest.mark.parametrize("name", ["mtard", "kd"])
def test_it_learns_from_several_teachers_and_goes_on_after_a_kill_to_the_same_bytes(name, cpu, context, tiny):
    class Killing:
        def __call__(self, items, label, *, total=None, unit="batch"):
            if label == "qat 2/2":
                raise Killed
            yield from items

        def say(self, message):
            pass

    keys = {"attack": {"epsilon": 0.1, "steps": 1}, "balance_rate": 0.5} if name == "mtard" else {}
    further = save_network(tiny(seed=2), _made(context.folder / "further"))
    inputs = replace(cpu, artifacts={**cpu.artifacts, "teacher-further": further})
    objective, mixture = parse_objective(name, keys, at="test"), None if name == "mtard" else Mixture(weights="learned")
    tuned = config(epochs=2, objective=objective, mixture=mixture, teachers=(TeacherShare(name="further", role="natural"),))
    undisturbed = qat.run(inputs, tuned, replace(context, folder=_made(context.folder / "undisturbed")))
    folder = _made(context.folder / "killed")
    with pytest.raises(Killed):
        qat.run(inputs, tuned, replace(context, folder=folder, progress=Killing()))
    assert digests(qat.run(inputs, tuned, replace(context, folder=folder))) == digests(undisturbed)
    (training,) = json.loads((undisturbed / "history.json").read_text())["trainings"]
    assert ("natural_share" if name == "mtard" else "weight of further") in training["epochs"][-1]["loss"]


def test_ranges_and_statistics_stay_in_the_last_epochs(cpu, context):
    """All of them here: the fine-tuned twin then has the calibrated one's ranges, with other weights."""
    folder = qat.run(cpu, config(frozen_share=1.0), context)
    fixed, moved = load_network(folder), load_network(folder / "ptq")
    ranges = [
        [(float(module.low), float(module.high)) for module in made.module.modules() if isinstance(module, ActivationQuantizer)] for made in (fixed, moved)
    ]
    assert ranges[0] == ranges[1]
    assert outcome(folder).kept == "qat"
    assert not torch.equal(fixed.module.get_parameter("body.linear.weight"), moved.module.get_parameter("body.linear.weight"))


def test_the_attack_of_a_robust_objective_runs_on_the_twin(cpu, context):
    objective = parse_objective("rslad", {"attack": {"epsilon": 0.1, "steps": 2}}, at="test")
    folder = qat.run(cpu, config(epochs=1, objective=objective, validation_attack_samples=50), context)
    told = outcome(folder)
    assert told.select_by == "balanced"
    assert told.ptq.robust_accuracy is not None
    assert told.qat.robust_accuracy is not None
    (training,) = json.loads((folder / "history.json").read_text())["trainings"]
    assert set(training["epochs"][0]["loss"]) == {"total", "adversarial", "clean"}


def test_hidden_layers_are_found_on_the_twin_under_their_names(cpu, context):
    layers = ("body.layer1", "body.layer3")
    objective = parse_objective("hierarchical", {"student_layers": layers, "teacher_layers": layers}, at="test")
    folder = qat.run(cpu, config(epochs=1, objective=objective), context)
    (training,) = json.loads((folder / "history.json").read_text())["trainings"]
    assert training["objective"] == "hierarchical"
    assert outcome(folder).qat.clean_accuracy > 0.5


def test_calibration_sees_training_samples_alone(cpu, context, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(qat, "calibrate_", _noting(qat.calibrate_, seen))
    qat.run(cpu, config(epochs=0, calibration_samples=64), context)
    training = {sample.tobytes() for sample in digits.train.read(_all(digits.train))}
    assert len(seen) == 64
    assert {sample.numpy().tobytes() for sample in seen} <= training


def test_a_sharp_drop_stops_the_stage_with_what_to_do(cpu, context):
    with pytest.raises(ConfigError) as raised:
        qat.run(cpu, config(epochs=1, batch_norm="folded", learning_rate=0.1, weight_decay=0.9), context)
    (problem,) = raised.value.problems
    assert problem.message.startswith("quantization-aware training fell from ")
    assert problem.message.endswith("% on validation")
    assert problem.at == "[qat]"
    assert problem.do == "set batch_norm = 'live', or lower learning_rate (now 0.1, try 0.02), or set epochs = 0 to keep the calibrated network"


def test_values_out_of_range_are_refused():
    for changed in ({"epochs": -1}, {"frozen_share": 1.5}, {"calibration_samples": 0}, {"batch_norm": "none"}, {"bits": 8}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            config(**changed)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _all(split):
    import numpy as np

    return np.arange(len(split))


def _noting(calibrate, seen):
    def noting(twin, batches, *arguments, **named):
        batches = list(batches)
        seen.extend(sample for batch in batches for sample in batch)
        calibrate(twin, batches, *arguments, **named)

    return noting


class Undecided(torch.nn.Module):
    """Decides by a tensor's values, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.linear(-x if x.sum() > 0 else x)


def test_a_student_that_cannot_be_quantized_is_told_before_anything_is_trained(inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "undecided", SimpleNamespace(net=Undecided))
    planned = replace(inputs, artifacts={}, profile=load_profile("cpu", at="test"))
    sections = {"qat": QatConfig(), "distill": DistillConfig.model_validate({"student": "resnet-8"})}
    qat.check(sections, planned)

    with pytest.raises(ConfigError) as caught:
        qat.check({**sections, "distill": DistillConfig.model_validate({"student": "undecided:net"})}, planned)

    (problem,) = caught.value.problems
    assert problem.message.startswith("the network cannot be traced: ")
    assert "body" in problem.at
    assert "no decision by a tensor's values" in problem.do
