import json
from dataclasses import replace

import pytest
import torch

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import build_network, load_network, save_network
from kdpipe.foundation.quantization.layers import FrozenFloatLayer, FrozenLayer
from kdpipe.foundation.randomness import stream
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages import export, qat
from kdpipe.stages.distill import DistillConfig
from kdpipe.stages.export import ExportConfig
from kdpipe.stages.mixed_precision import GIVEN_BACK, Drop, MixedPrecision
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.parity import Parity
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.stages.search_attack import SearchAttack
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.targets.profile import load_profile
from kdpipe.tasks.image_classification import ImageClassification

PLAIN = parse_objective("plain", {}, at="test")
HURT = "body.layer2.0.conv2"


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A small residual network that reads the digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = ImageClassification(data="digits", augment=())
    network = build_network(task.network_spec("resnet-8", {"width": 0.25}, digits, at="test"), stream(0, "mixed"))
    folder = tmp_path_factory.mktemp("trained")
    context = Context(folder=folder / "work", project=folder, seed=0, threads=1, progress=SilentProgress())
    train(network, PLAIN, None, Inputs({}, digits, task), TrainingConfig(epochs=12, batch_size=32), context, label="trained")
    torch.set_num_threads(threads)
    return save_network(network, folder / "network")


@pytest.fixture(scope="module")
def hurt(trained, tmp_path_factory):
    """The same function, but one channel before `HURT` is 3,000 times as large, and its weights as much smaller: 8 bits leave nothing of the others."""
    return save_network(_with_outlier(load_network(trained), 3000), tmp_path_factory.mktemp("hurt") / "network")


def given(inputs, folder, target="cpu", **changed):
    profile = load_profile(target, at="test")
    if "runtimes" not in changed:  # one is enough for the order of things
        changed["runtimes"] = profile.runtimes[:1]
    return replace(inputs, artifacts={"prune": folder, "teacher": folder}, profile=profile.model_copy(update=changed))


def config(**changed):
    return QatConfig(**{"epochs": 0, "batch_size": 32, "keep_float": "auto", "keep_float_drop": 8.0, **changed})


def outcome(folder):
    return Outcome.model_validate(json.loads((folder / "quantization.json").read_text()))


def test_the_hurt_layer_and_no_other_stays_in_float(inputs, hurt, context, listener):
    folder = qat.run(given(inputs, hurt), config(), context)
    told = outcome(folder)
    found = told.mixed_precision
    assert found.outcome == "found"
    assert found.float_layers == told.float_layers == (HURT,)
    assert found.sensitivities[0].layer == HURT
    assert found.sensitivities[0].alone_distance > 10 * found.sensitivities[1].alone_distance
    assert found.all_accuracy < 0.7
    assert found.sensitivities[0].without_accuracy > 0.8
    assert told.ptq.clean_accuracy > 0.8
    assert f"1 layer must stay in float: {HURT} (2 files measured)" in listener.said
    for made in (load_network(folder), load_network(folder / "ptq")):
        assert made.spec.quantization.float_layers == (HURT,)
        assert [name for name, module in made.module.named_modules() if isinstance(module, FrozenFloatLayer)] == [HURT]
        assert sum(isinstance(module, FrozenLayer) for module in made.module.modules()) == 9


@pytest.mark.slow
def test_every_decision_rests_on_a_file_that_was_measured(inputs, hurt, context):
    found = outcome(qat.run(given(inputs, hurt), config(), context)).mixed_precision
    first, second = found.trials
    assert (first.float_layers, second.float_layers) == ((), (HURT,))
    assert (first.kept_to, second.kept_to) == (False, True)
    for trial in found.trials:
        (runtime,) = trial.drops
        assert runtime.startswith("onnxruntime")
        assert trial.kept_to == (trial.drops[runtime].high <= found.limit)
        assert trial.drops[runtime].value + 100 * trial.accuracy[runtime] == pytest.approx(96.0)  # the teacher's: the float network itself
    assert second.size_bytes > first.size_bytes


def test_no_layer_stays_in_float_where_none_has_to(inputs, trained, context, listener):
    folder = qat.run(given(inputs, trained), config(), context)
    told = outcome(folder)
    assert (told.mixed_precision.outcome, told.float_layers, len(told.mixed_precision.trials)) == ("not needed", (), 1)
    assert told.mixed_precision.sensitivities == ()
    assert "no layer has to stay in float for 8 points below the teacher on validation (1 file measured)" in listener.said
    plain = qat.run(given(inputs, trained), QatConfig(epochs=0, batch_size=32), replace(context, folder=_made(context.folder / "plain")))
    assert (folder / "weights.safetensors").read_bytes() == (plain / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_a_limit_that_the_float_network_misses_keeps_nothing_in_float(inputs, hurt, context, listener):
    told = outcome(qat.run(given(inputs, hurt), config(keep_float_drop=0.0), context))
    assert (told.mixed_precision.outcome, told.float_layers) == ("out of reach", ())
    assert any(line.startswith("no layer stays in float: even without rounding the network is 0.00 points below the teacher, up to ") for line in listener.said)


@pytest.mark.slow
def test_the_file_with_a_float_layer_agrees_with_its_twin_in_every_runtime(inputs, hurt, context):
    every = given(inputs, hurt, runtimes=load_profile("cpu", at="test").runtimes)
    made = qat.run(every, config(keep_float=(HURT,), keep_float_drop=None), replace(context, folder=_made(context.folder / "qat")))
    assert outcome(made).mixed_precision is None
    exported = replace(every, artifacts={**every.artifacts, "qat": made})
    folder = export.run(exported, ExportConfig(parity_samples=50), replace(context, folder=_made(context.folder / "export")))
    parity = Parity.model_validate(json.loads((folder / "parity.json").read_text()))
    assert not parity.broken
    assert {rung.file for rung in parity.rungs if "openvino" in rung.name} == {"model.onnx"}


@pytest.mark.slow
def test_several_hurt_layers_are_found_with_few_files(inputs, trained, context):
    """Blocks of layers 1 to 3 are hurt alike; the search doubles, halves, and tries to give back."""
    network = load_network(trained)
    with torch.no_grad():
        for stage in (1, 2, 3):
            block = network.module.get_submodule(f"body.layer{stage}.0")
            channel = int(block.bn1.weight.abs().argmax())
            block.bn1.weight[channel] *= 3000
            block.bn1.bias[channel] *= 3000
            block.conv2.weight[:, channel] /= 3000
    folder = save_network(network, context.folder / "hurt")
    found = outcome(qat.run(given(inputs, folder), config(), replace(context, folder=_made(context.folder / "qat")))).mixed_precision
    worst = {row.layer for row in found.sensitivities[:3]}
    assert worst == {f"body.layer{stage}.0.conv2" for stage in (1, 2, 3)}
    assert set(found.float_layers) <= worst
    assert 1 < len(found.trials) <= 2 * 4 + GIVEN_BACK
    assert next(trial for trial in found.trials if trial.float_layers == found.float_layers).kept_to
    for layer in found.float_layers:  # each of them is needed
        fewer = tuple(name for name in found.float_layers if name != layer)
        assert not any(trial.kept_to for trial in found.trials if trial.float_layers == fewer)


@pytest.mark.slow
def test_where_fine_tuning_founders_on_the_hurt_layer_the_calibrated_network_is_mended(inputs, hurt, context, listener):
    """Without a search the same training stops the stage."""
    told = outcome(qat.run(given(inputs, hurt), config(epochs=1, objective=PLAIN, learning_rate=0.002, frozen_share=0.0), context))
    assert told.qat.clean_accuracy < 0.5
    assert (told.kept, told.float_layers) == ("ptq", (HURT,))
    assert told.ptq.clean_accuracy > 0.8
    assert listener.said[-1].endswith(f'to fine-tune with them in float: [qat] keep_float = ["{HURT}"]')


@pytest.mark.slow
def test_a_layer_that_the_clean_budget_lets_pass_stays_in_float_for_the_budget_under_attack(inputs, context, listener):
    """Its channel costs more robustness than accuracy. The limits are set by what the first search measures, which asks for nothing."""
    digits = ImageClassification(data="digits", augment=()).load(context.folder, 0)
    inputs = replace(inputs, data=digits)
    start = save_network(_with_outlier(_robust(digits, context.folder), 100), context.folder / "network")

    def found(name, **limits):
        asked = config(search_attack=SearchAttack(norm="linf", epsilon=0.1), **limits)
        return outcome(qat.run(given(inputs, start), asked, replace(context, folder=_made(context.folder / name)))).mixed_precision

    seen = found("seen", keep_float_drop=100.0, keep_float_robust=0.0)
    (drop,), (before,) = seen.trials[0].drops.values(), seen.trials[0].robust.values()
    assert seen.outcome == "not needed"
    assert seen.float_robust.value - before.value > drop.value
    limit = seen.float_robust.low - 4
    both = found("both", keep_float_drop=drop.high + 0.1, keep_float_robust=limit)
    assert (both.outcome, both.float_layers) == ("found", (HURT,))
    first, second = both.trials
    (after,) = second.robust.values()
    assert first.drops == seen.trials[0].drops  # within the clean limit: accuracy is not the reason
    assert (first.kept_to, second.kept_to) == (False, True)
    assert before.low < limit <= after.low
    assert after.n == len(digits.validation)
    assert any(f"at least {before.low:.1f} (limit {limit:g})" in line for line in listener.said)


@pytest.mark.parametrize(
    ("stood", "remedy"),
    [
        (Figure(value=60.0, low=50.0, high=69.0, n=100), "about 320 attacked samples would show that it is kept: [qat] validation_attack_samples"),
        (Figure(value=52.0, low=43.0, high=61.0, n=100), "train more robustly, or lower the limit"),
    ],
    ids=["too few samples", "too little"],
)
def test_a_limit_under_attack_that_the_float_network_misses_says_what_would_help(stood, remedy):
    none = Drop(value=0.0, low=-1.0, high=1.0)
    found = MixedPrecision(limit=None, n=100, outcome="out of reach", float_layers=(), float_network=none, trials=(), robust_limit=54.5, float_robust=stood)
    expected = f"{stood.value:.1f} % right under attack, at least {stood.low:.1f} (n = 100), the limit is 54.5"
    assert found.told == f"no layer stays in float: even without rounding the network is {expected}; {remedy}"


def test_both_limits_are_told_where_no_layer_is_needed():
    none = Drop(value=0.0, low=-1.0, high=1.0)
    found = MixedPrecision(limit=2.0, n=100, outcome="not needed", float_layers=(), float_network=none, trials=(), robust_limit=40.0)
    assert found.told.startswith("no layer has to stay in float for 2 points below the teacher and 40 % under attack on validation")


def test_the_listed_layers_are_float_in_training_too(inputs, trained, context):
    by_hand = config(epochs=1, objective=PLAIN, learning_rate=0.002, frozen_share=0.0, keep_float=("layer2.0.conv2",), keep_float_drop=None)
    told = outcome(qat.run(given(inputs, trained), by_hand, context))
    assert told.float_layers == (HURT,)
    assert told.qat.clean_accuracy > 0.8


def test_a_layer_that_is_not_there_is_told_before_anything_is_trained(inputs):
    sections = {"qat": config(keep_float=("layer2.0.con2",), keep_float_drop=None), "distill": DistillConfig.model_validate({"student": "resnet-8"})}
    with pytest.raises(ConfigError) as raised:
        qat.check(sections, replace(inputs, profile=load_profile("cpu", at="test")))
    (problem,) = raised.value.problems
    assert problem.message == "the network has no convolution or linear layer 'layer2.0.con2'"
    assert problem.at == "[qat] keep_float"
    assert problem.do.startswith("did you mean 'layer2.0.conv2'? layers: conv1, layer1.0.conv1, ")


def test_the_budget_of_a_search_without_a_search_is_refused():
    with pytest.raises(ValueError, match="keep_float_drop is the budget of keep_float = 'auto'"):
        QatConfig(keep_float_drop=1.0)
    with pytest.raises(ValueError, match="keep_float_robust is a budget of keep_float = 'auto'"):
        QatConfig(keep_float_robust=40.0)


def _robust(digits, folder):
    """A small residual network, trained adversarially."""
    task = ImageClassification(data="digits", augment=())
    network = build_network(task.network_spec("resnet-8", {"width": 0.25}, digits, at="test"), stream(0, "mixed"))
    context = Context(folder=folder / "robust", project=folder, seed=0, threads=1, progress=SilentProgress())
    objective = parse_objective("at", {"attack": {"epsilon": 0.1, "steps": 5}}, at="test")
    train(network, objective, None, Inputs({}, digits, task), TrainingConfig(epochs=12, batch_size=32), context, label="robust")
    return network


def _with_outlier(network, factor):
    """The same function with one channel before `HURT` so many times as large."""
    block = network.module.get_submodule(HURT.rpartition(".")[0])
    with torch.no_grad():
        channel = int(block.bn1.weight.abs().argmax())
        block.bn1.weight[channel] *= factor
        block.bn1.bias[channel] *= factor
        block.conv2.weight[:, channel] /= factor
    return network


def _made(folder):
    folder.mkdir()
    return folder
