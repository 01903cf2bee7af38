import copy
import json
import os
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import Network
from kdpipe.foundation.plugins import names
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.history import write_history
from kdpipe.stages.objectives.at import At
from kdpipe.stages.objectives.configured import PACKAGE, objective_class
from kdpipe.stages.objectives.hierarchical import Hierarchical
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.objective import Objective, Step, weighted
from kdpipe.stages.objectives.plain import Plain
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.stages.training import TrainingDivergedError, batching, train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.tasks.image_classification import ImageClassification

SHIFTED = ImageClassification.model_validate({"data": "digits", "augment": [{"name": "crop"}]})
ATTACK = Attack(epsilon=0.1, steps=2)
SHORT = TrainingConfig(epochs=3, batch_size=32, learning_rate=0.1)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_learns_and_keeps_the_best_epoch_of_the_validation_split(tiny, inputs, context):
    network = tiny(width=0.5)
    history = train(network, Plain(), None, inputs, TrainingConfig(epochs=6, batch_size=32, learning_rate=0.1), context, label="teacher")
    best = max(history.epochs, key=lambda record: (record.validation.clean_accuracy, -record.validation.loss))
    assert history.best == best
    assert best.validation.clean_accuracy > 0.5
    assert history.epochs[-1].loss["total"] < history.epochs[0].loss["total"] / 2
    with torch.no_grad():
        logits = network.module(torch.from_numpy(inputs.data.validation.read(np.arange(100))))
    assert (logits.argmax(1).numpy() == inputs.data.validation.labels).mean() == pytest.approx(best.validation.clean_accuracy)
    assert not network.module.training


OBJECTIVES = {
    "plain": (Plain(), {"optimizer": "adamw", "learning_rate": 0.01}),
    "kd": (Kd(), {"ema_decay": 0.9, "clip_norm": 1.0}),
    "hierarchical": (Hierarchical(match="features"), {"schedule": "multi-step"}),
    "rslad": (Rslad(attack=ATTACK), {"warmup_epochs": 1.0, "ema_decay": 0.5}),
    "rslad, weights perturbed": (Rslad(attack=ATTACK), {"awp": {"gamma": 0.01, "start": 0.4}, "swa_start": 0.5}),
    "kd, all learned": (
        Kd.model_validate({"temperature": {"from": 1, "to": 21, "shape": "learned"}, "weighting": "uncertainty"}),
        {"awp": {"gamma": 0.01, "start": 0}, "swa_start": 0.0},
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_stopped_anywhere_it_goes_on_to_the_same_bits(name, tiny, inputs, context, tmp_path, stopping):
    objective, keys = OBJECTIVES[name]
    config = TrainingConfig.model_validate({"epochs": 3, "batch_size": 64, "learning_rate": 0.1, **keys})
    inputs = replace(inputs, task=SHIFTED)  # with augmentation
    teacher = tiny(seed=1) if objective.needs_teacher else None

    def trained(folder, stops):
        for stop in stops:
            with pytest.raises(stopping.Stopped):
                train(tiny(), objective, teacher, inputs, config, replace(context, folder=folder, progress=stopping(stop)), label="distill")
        network = tiny()
        return network, train(network, objective, teacher, inputs, config, replace(context, folder=folder), label="distill")

    whole, history = trained(tmp_path / "whole", [])
    resumed, resumed_history = trained(tmp_path / "resumed", [1, 4, 2])
    assert equal(whole.module, resumed.module)
    assert history.model_dump_json() == resumed_history.model_dump_json()


OTHERS = [name for name in names(PACKAGE) if name not in OBJECTIVES]


@pytest.mark.parametrize("name", OTHERS)
def test_so_does_every_other_objective(name, tiny, inputs, context, tmp_path, stopping):
    kind = objective_class(name, at="test")
    objective = kind.model_validate({"attack": ATTACK} if kind.robust else {})
    config = TrainingConfig(epochs=2, batch_size=64, learning_rate=0.01)
    inputs = replace(inputs, task=SHIFTED)
    whole, stopped = tiny(), tiny()
    teacher = [tiny(seed=1 + number) for number in range(max(1, len(objective.teacher_roles)))] if objective.needs_teacher else None
    history = train(whole, objective, teacher, inputs, config, replace(context, folder=tmp_path / "whole"), label="distill")
    folder = tmp_path / "stopped"
    with pytest.raises(stopping.Stopped):
        train(tiny(), objective, teacher, inputs, config, replace(context, folder=folder, progress=stopping(4)), label="distill")
    assert train(stopped, objective, teacher, inputs, config, replace(context, folder=folder), label="distill") == history
    assert equal(whole.module, stopped.module)
    assert not equal(whole.module, tiny().module)


def test_layers_that_draw_from_torch_itself_resume_to_the_same_bits_and_leave_its_generator_alone(inputs, context, tiny, tmp_path, stopping):
    def network():
        torch.manual_seed(0)
        return Network(tiny().spec, nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)))

    whole, stopped = network(), network()
    before = torch.random.get_rng_state()
    train(whole, Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "a"), label="teacher")
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(stopping.Stopped):
        train(stopped, Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "b", progress=stopping(10)), label="teacher")
    torch.rand(5)
    stopped = network()
    train(stopped, Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "b"), label="teacher")
    assert equal(whole.module, stopped.module)


def test_a_finished_training_is_loaded_and_not_repeated(tiny, inputs, context, stopping):
    first, again = tiny(), tiny()
    history = train(first, Plain(), None, inputs, SHORT, context, label="teacher")
    repeated = train(again, Plain(), None, inputs, SHORT, replace(context, progress=stopping(0)), label="teacher")
    assert equal(first.module, again.module)
    assert history == repeated


def test_a_checkpoint_of_other_settings_weights_or_data_is_not_resumed(tiny, inputs, context, listener):
    train(tiny(), Plain(), None, inputs, SHORT, context, label="teacher")
    listener.said.clear()
    train(tiny(seed=5), Plain(), None, inputs, SHORT, context, label="teacher")
    assert any("it is of another training" in line for line in listener.said)
    listener.said.clear()
    train(tiny(seed=5), Plain(label_smoothing=0.1), None, inputs, SHORT, context, label="teacher")
    assert any("it is of another training" in line for line in listener.said)


def test_a_damaged_checkpoint_costs_one_epoch_and_no_bit(tiny, inputs, context, listener, tmp_path, stopping):
    whole, damaged = tiny(), tiny()
    train(whole, Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "a"), label="teacher")
    with pytest.raises(stopping.Stopped):
        train(tiny(), Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "b", progress=stopping(14)), label="teacher")
    newest = max((tmp_path / "b" / "checkpoint" / "teacher").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:100])
    train(damaged, Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "b"), label="teacher")
    assert equal(whole.module, damaged.module)
    assert any("its tensors are damaged" in line for line in listener.said)


KILLED = """
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from kdpipe.foundation.networks import build_network, save_network
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.history import write_history
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.foundation.randomness import stream
from kdpipe.tasks.image_classification import ImageClassification

class Spoken:
    def __call__(self, items, label, *, total=None, unit="batch"):
        for item in items:
            print(label, flush=True)
            yield item
    def say(self, message):
        print(message, flush=True)

print(os.getpid(), flush=True)
folder = Path(sys.argv[1])
task = ImageClassification(data="digits", augment=({"name": "crop"},))
data = task.load(folder, seed=0)
student, teacher = (build_network(task.network_spec("resnet-8", {"width": 0.25}, data, at="test"), stream(seed, "init")) for seed in (0, 1))
config = TrainingConfig(epochs=4, batch_size=128, learning_rate=0.1, ema_decay=0.9)
objective = Rslad(attack=Attack(epsilon=0.1, steps=2))
history = train(student, objective, teacher, Inputs({}, data, task), config, Context(folder, folder, 0, 1, Spoken()), label="distill")
save_network(student, folder / "out")
write_history(folder / "out", history)
"""


@pytest.mark.slow
def test_killed_by_the_system_again_and_again_it_ends_in_the_same_files(tmp_path, warm_python):
    script = tmp_path / "train.py"
    script.write_text(KILLED)

    def start(folder):
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([*warm_python, script, folder], stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "whole") as whole:
        assert whole.communicate()[1] is None
    assert whole.returncode == 0
    for lines in (3, 14):  # in the first epoch, after a checkpoint, before the next, …
        with start(tmp_path / "killed") as process:
            trains = int(process.stdout.readline())
            for _ in range(lines):
                process.stdout.readline()
            os.kill(trains, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    with start(tmp_path / "killed") as last:
        said = last.communicate()[0]
    assert last.returncode == 0
    assert "distill: resumed after epoch" in said
    for name in ("weights.safetensors", "history.json", "network.json"):
        assert (tmp_path / "whole" / "out" / name).read_bytes() == (tmp_path / "killed" / "out" / name).read_bytes()


class Exploding(Objective):
    """Fine for a while, then not a number."""

    needs_teacher = False
    fine_until: float = 0.5

    def loss(self, step: Step):
        factor = 1.0 if step.progress < self.fine_until else float("nan")
        return weighted(labels=(factor, nn.functional.cross_entropy(step.student(step.x), step.labels)))


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_good_checkpoint(tiny, inputs, context):
    with pytest.raises(TrainingDivergedError) as caught:
        train(tiny(), Exploding(), None, inputs, TrainingConfig(epochs=4, batch_size=32, learning_rate=0.1), context, label="distill")
    problem = caught.value.problems[0]
    assert problem.message == "training diverged: the loss is nan"
    assert problem.at == "distill, epoch 3, batch 1 of 7"
    assert problem.do.startswith("lower learning_rate (now 0.1, try 0.033)")
    assert "2 finished epochs are kept" in problem.do
    assert caught.value.exit_code == 2
    description = json.loads((context.folder / "checkpoint" / "distill" / "epoch-000002.json").read_text())
    assert description["done"] == 2


def test_a_learning_rate_far_too_high_is_told_as_divergence_also_from_inside_the_attack(tiny, inputs, context):
    with pytest.raises(TrainingDivergedError, match="training diverged") as caught:
        train(tiny(), At(attack=ATTACK), None, inputs, TrainingConfig(epochs=3, batch_size=32, learning_rate=1e30), context, label="teacher")
    assert caught.value.problems[0].at.startswith("teacher, epoch 1")


def test_the_test_split_is_never_touched(tiny, inputs, context):
    # the fixture's test split fails whoever touches it
    train(tiny(), Rslad(attack=ATTACK), tiny(seed=1), inputs, TrainingConfig(epochs=1), context, label="distill")


def test_teacher_and_argument_layouts_are_as_before(tiny, inputs, context):
    teacher = tiny(seed=1)
    teacher.module.train()
    before = copy.deepcopy(teacher.module)
    student = tiny()
    train(student, Kd(), teacher, inputs, SHORT, context, label="distill")
    assert equal(teacher.module, before)
    assert all(module.training for module in teacher.module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.module.parameters())
    assert all(parameter.is_contiguous() for parameter in [*student.module.parameters(), *teacher.module.parameters()])


def test_unaugmented_data_asks_the_teacher_once_for_all_epochs(tiny, inputs, context):
    teacher = tiny(seed=1)
    passes = []
    teacher.module.register_forward_pre_hook(lambda module, arguments: passes.append(len(arguments[0])))
    train(tiny(), Kd(), teacher, inputs, SHORT, context, label="distill")
    assert passes == [200]
    passes.clear()
    augmented = replace(inputs, task=SHIFTED)
    train(tiny(), Kd(), teacher, augmented, replace_epochs(2), replace(context, folder=context.folder / "other"), label="distill")
    assert sum(passes) == 2 * 200


def replace_epochs(epochs):
    return SHORT.model_copy(update={"epochs": epochs})


def test_the_average_is_what_is_judged_and_kept(tiny, inputs, context, tmp_path):
    raw, averaged = tiny(), tiny()
    nought = train(raw, Plain(), None, inputs, SHORT.model_copy(update={"ema_decay": 0.0}), replace(context, folder=tmp_path / "a"), label="teacher")
    without = tiny()
    plain = train(without, Plain(), None, inputs, SHORT, replace(context, folder=tmp_path / "b"), label="teacher")
    train(averaged, Plain(), None, inputs, SHORT.model_copy(update={"ema_decay": 0.99}), replace(context, folder=tmp_path / "c"), label="teacher")
    assert nought.epochs == plain.epochs
    assert equal(raw.module, without.module)
    assert not equal(averaged.module, without.module)


def test_patience_ends_a_training_that_no_longer_improves(tiny, inputs, context):
    config = TrainingConfig(epochs=50, batch_size=64, learning_rate=1e-9, patience=2)
    history = train(tiny(), Plain(), None, inputs, config, context, label="teacher")
    assert history.stopped_early
    assert len(history.epochs) == history.best_epoch + 2 < 50


@pytest.mark.parametrize("select_by", ["clean", "robust", "balanced"])
def test_the_epoch_is_chosen_by_the_figure_that_is_asked_for(select_by, tiny, inputs, context):
    config = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.1, select_by=select_by)
    history = train(tiny(), At(attack=ATTACK), None, inputs, config, context, label="teacher")

    def rank(record):
        clean, robust = record.validation.clean_accuracy, record.validation.robust_accuracy
        return {"clean": clean, "robust": robust, "balanced": ((robust or 0) + clean) / 2}[select_by]

    assert rank(history.best) == max(rank(record) for record in history.epochs)
    assert (history.best.validation.robust_accuracy is None) == (select_by == "clean")


def test_a_robust_choice_without_an_attack_is_refused_before_training(tiny, inputs, context, stopping):
    with pytest.raises(ConfigError) as caught:
        train(tiny(), Plain(), None, inputs, TrainingConfig(epochs=1, select_by="robust"), replace(context, progress=stopping(0)), label="teacher")
    problem = caught.value.problems[0]
    assert problem.message == "select_by = 'robust' needs an attack, objective 'plain' has none"
    assert problem.at == "teacher"
    assert problem.do == "set select_by = 'clean', or choose a robust objective: at, trades, rslad"


def test_an_objective_that_needs_a_teacher_does_not_start_without(tiny, inputs, context):
    with pytest.raises(ConfigError) as caught:
        train(tiny(), Kd(), None, inputs, SHORT, context, label="distill")
    problem = caught.value.problems[0]
    assert (problem.message, problem.at) == ("objective 'kd' needs a teacher", "distill")
    assert "plain, at, trades" in problem.do


@pytest.mark.parametrize(
    ("samples", "batch_size", "expected"),
    [
        (200, 64, (64, True)),
        (208, 64, (64, False)),
        (192, 64, (64, False)),
        (129, 64, (64, True)),
        (10, 64, (10, False)),
        (5, 4, (4, True)),
        (6, 4, (4, False)),
    ],
)
def test_a_last_batch_too_small_for_batch_statistics_is_left_out(samples, batch_size, expected):
    assert batching(samples, batch_size) == expected


def test_a_set_smaller_than_a_batch_is_one_batch(tiny, inputs, context):
    class Few(type(inputs.data.train)):
        pass

    few = replace(inputs, data=replace(inputs.data, train=Few(inputs.data.train, 9)))
    history = train(tiny(), Rslad(attack=ATTACK), tiny(seed=1), few, TrainingConfig(epochs=2, batch_size=64), context, label="distill")
    assert len(history.epochs) == 2


def test_before_each_epoch_the_caller_is_called_in_training_mode_also_after_a_resume(tiny, inputs, context, tmp_path, stopping):
    network, called = tiny(), []

    def before(epoch):
        called.append((epoch, network.module.training))

    with pytest.raises(stopping.Stopped):
        train(network, Plain(), None, inputs, SHORT, replace(context, progress=stopping(8)), label="teacher", before_epoch=before)
    network = tiny()
    train(network, Plain(), None, inputs, SHORT, context, label="teacher", before_epoch=before)
    assert called == [(0, True), (1, True), (1, True), (2, True)]


def test_weight_decay_spares_biases_and_batchnorm(tiny, inputs, context):
    class Nothing(Objective):
        """No gradient but zero."""

        needs_teacher = False

        def loss(self, step: Step):
            return weighted(nothing=(0.0, step.student(step.x).square().sum()))

    network = tiny()
    before = {name: value.clone() for name, value in network.module.named_parameters()}
    train(network, Nothing(), None, inputs, TrainingConfig(epochs=1, learning_rate=0.1, weight_decay=0.1), context, label="teacher")
    for name, value in network.module.named_parameters():
        assert torch.equal(value, before[name]) == (value.ndim < 2), name


def test_the_history_holds_no_times_and_is_written_as_json(tiny, inputs, context):
    history = train(tiny(), Rslad(attack=ATTACK), tiny(seed=1), inputs, TrainingConfig(epochs=1), context, label="distill")
    write_history(context.folder, history)
    (told,) = json.loads((context.folder / "history.json").read_text())["trainings"]
    assert told["objective"] == "rslad"
    assert set(told["epochs"][0]["loss"]) == {"total", "adversarial", "clean"}
    assert not any("second" in key or "time" in key for key in [*told, *told["epochs"][0]])


def test_milestones_are_shares_of_the_training():
    with pytest.raises(ValidationError, match="they are shares of the training, not epochs"):
        TrainingConfig(milestones=(100, 150))


def test_perturbed_weights_change_the_training_from_their_start_on(tiny, inputs, context, tmp_path):
    def weights(name, **keys):
        network = tiny()
        train(network, Plain(), None, inputs, TrainingConfig(epochs=2, batch_size=100, **keys), replace(context, folder=tmp_path / name), label="teacher")
        return network.module

    plain, late, early = weights("plain"), weights("late", awp={"start": 0.9}), weights("early", awp={"start": 0.0})
    assert equal(plain, late)  # 4 steps: the last begins at 0.75
    assert not equal(plain, early)


def test_the_attack_is_made_once_and_before_weights_are_perturbed(tiny, inputs, context):
    class Counting(Rslad):
        def attacked(self, step):
            attacked.append(step.student.get_parameter("body.conv1.weight").clone())
            return super().attacked(step)

        def outer(self, step, x_adv):
            learned.append(step.student.get_parameter("body.conv1.weight").clone())
            return super().outer(step, x_adv)

    attacked, learned = [], []
    config = TrainingConfig(epochs=1, batch_size=200, awp={"gamma": 0.1, "start": 0.0}, validation_attack_samples=10)
    train(tiny(), Counting(attack=ATTACK), tiny(seed=1), inputs, config, context, label="distill")
    assert len(attacked) == 1
    assert len(learned) == 2
    assert torch.equal(attacked[0], learned[0])
    assert (learned[1] - learned[0]).norm().item() == pytest.approx(0.1 * learned[0].norm().item(), rel=1e-3)


def test_the_equal_average_is_kept_from_its_start_on(tiny, inputs, context):
    ends = []

    class Kept(Plain):
        def loss(self, step):
            if step.number == 0:
                ends.append({name: value.clone() for name, value in step.student.state_dict().items()})
            return super().loss(step)

    network = tiny()
    config = TrainingConfig(epochs=4, batch_size=100, swa_start=0.5, schedule="constant")
    history = train(network, Kept(), None, inputs, config, context, label="teacher")
    checkpoint = sorted((context.folder / "checkpoint" / "teacher").glob("*.safetensors"))
    tensors = [load_file(path) for path in checkpoint]  # the two newest: after epochs 3 and 4
    mean = (tensors[0]["student/body.conv1.weight"] + tensors[1]["student/body.conv1.weight"]) / 2
    assert torch.allclose(tensors[1]["average/body.conv1.weight"], mean, atol=1e-7)
    assert not torch.equal(tensors[1]["average/body.bn1.running_mean"], tensors[1]["student/body.bn1.running_mean"])
    kept = network.module.get_parameter("body.conv1.weight")
    candidates = {1: ends[1], 2: ends[2]} | {3 + i: {"body.conv1.weight": one["average/body.conv1.weight"]} for i, one in enumerate(tensors)}
    assert torch.equal(kept, candidates[history.best_epoch]["body.conv1.weight"])


def test_two_averages_at_once_are_refused():
    with pytest.raises(ValidationError, match="ema_decay and swa_start are two averages of the same weights: give one of them"):
        TrainingConfig(ema_decay=0.9, swa_start=0.5)
