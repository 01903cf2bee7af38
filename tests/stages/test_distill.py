import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.plugins import names
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.intervals import wilson
from kdpipe.stages.distill import DistillConfig, check, run
from kdpipe.stages.objectives.configured import PACKAGE, objective_class, parse_objective
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.teacher import TeacherConfig
from kdpipe.stages.teacher import run as run_teacher
from kdpipe.stages.teachers import FurtherTeacher
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.validation import validate
from kdpipe.tasks.image_classification import ImageClassification

TINY = {"student": "resnet-8", "student_arguments": {"width": 0.25}}


@pytest.mark.parametrize("objective", ["plain", "kd", "pointwise", "hierarchical", "at", "trades", "rslad"])
def test_every_objective_trains_the_student_that_is_named(objective, inputs, context, tiny):
    save_network(tiny(seed=1, width=0.5), context.project / "teacher")
    keys = {"attack": {"epsilon": 0.1, "steps": 1}} if objective in {"at", "trades", "rslad"} else {}
    config = DistillConfig.model_validate({**TINY, "objective": objective, "epochs": 1, "trust_teacher": True, **keys})
    folder = context.project / "student"
    folder.mkdir()
    run(replace(inputs, artifacts={"teacher": context.project / "teacher"}), config, replace(context, folder=folder))
    assert sorted(path.name for path in folder.iterdir()) == ["history.json", "network.json", "weights.safetensors"]
    student = load_network(folder)
    assert student.spec.arguments["width"] == 0.25
    assert not torch.equal(next(iter(student.module.parameters())), next(iter(tiny().module.parameters())))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(inputs, context, tiny):
    save_network(tiny(seed=1, width=0.5), context.project / "teacher")
    config = DistillConfig.model_validate({**TINY, "epochs": 1, "trust_teacher": True, "attack": {"epsilon": 0.1, "steps": 1}})
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (context.project / name).mkdir()
        run(replace(inputs, artifacts={"teacher": context.project / "teacher"}), config, replace(context, folder=context.project / name, seed=seed))
        weights.append((context.project / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


class StoppedError(Exception):
    """Raised at an epoch's first batch, as a kill between two epochs would come."""


class StoppingBefore:
    """A progress that stops when the training named `distill` begins the epoch of this number, from 1."""

    def __init__(self, epoch):
        self.label = f"distill {epoch}/"

    def __call__(self, items, label, *, total=None, unit="batch"):
        if label.startswith(self.label):
            raise StoppedError
        yield from items

    def say(self, message):
        pass


FURTHER = {"name": "further", "role": "natural", "weight": 2.0, "epochs": 1, "objective": "plain"}
SEVERAL = {
    "mtard": {"objective": "mtard", "attack": {"epsilon": 0.1, "steps": 1}, "balance_rate": 0.5},
    "learned weights": {"objective": "rslad", "attack": {"epsilon": 0.1, "steps": 1}, "mixture": {"weights": "learned"}},
    "confidence and gate": {"objective": "kd", "mixture": {"weights": "confidence", "gate": "wrong"}},
}


@pytest.mark.parametrize("name", SEVERAL)
def test_with_several_teachers_it_goes_on_after_a_stop_between_two_epochs_to_the_same_bytes(name, inputs, context, tiny):
    artifacts = {part: save_network(tiny(seed=seed, width=0.5), context.project / part) for seed, part in enumerate(("teacher", "teacher-further"), 1)}
    config = DistillConfig.model_validate({**TINY, "epochs": 3, "trust_teacher": True, "teachers": [FURTHER], **SEVERAL[name]})
    inputs = replace(inputs, artifacts=artifacts)
    (context.project / "whole").mkdir()
    (context.project / "stopped").mkdir()
    whole = run(inputs, config, replace(context, folder=context.project / "whole"))
    for epoch in (2, 3):
        with pytest.raises(StoppedError):
            run(inputs, config, replace(context, folder=context.project / "stopped", progress=StoppingBefore(epoch)))
    stopped = run(inputs, config, replace(context, folder=context.project / "stopped"))
    for file in ("weights.safetensors", "history.json"):
        assert (whole / file).read_bytes() == (stopped / file).read_bytes(), file


def test_further_teachers_change_what_is_learned_and_the_history_says_how_far_each_was_believed(inputs, context, tiny):
    artifacts = {part: save_network(tiny(seed=seed, width=0.5), context.project / part) for seed, part in enumerate(("teacher", "teacher-further"), 1)}
    weights = {}
    for name, teachers in (("one", None), ("two", [FURTHER])):
        (context.project / name).mkdir()
        config = DistillConfig.model_validate({**TINY, "objective": "kd", "epochs": 1, "trust_teacher": True, "teachers": teachers})
        folder = run(replace(inputs, artifacts=artifacts), config, replace(context, folder=context.project / name))
        weights[name] = (folder / "weights.safetensors").read_bytes()
    assert weights["one"] != weights["two"]
    (training,) = json.loads((context.project / "two" / "history.json").read_text())["trainings"]
    loss = training["epochs"][0]["loss"]
    assert loss["weight of teacher"] == pytest.approx(1 / 3)
    assert loss["weight of further"] == pytest.approx(2 / 3)
    assert loss["from labels"] == 0


def test_a_teacher_that_only_guesses_stops_the_stage_before_it_trains_unless_it_is_trusted(inputs, context, tiny):
    good, useless = tiny(seed=1, width=0.5), tiny(seed=2, width=0.5)
    with torch.no_grad():
        useless.module.get_submodule("body.linear").weight.zero_()
    train(good, parse_objective("plain", {}, at="test"), None, inputs, TrainingConfig(epochs=3, batch_size=32), context, label="teacher")
    artifacts = {"teacher": save_network(good, context.project / "teacher"), "teacher-further": save_network(useless, context.project / "further")}
    keys = {**TINY, "objective": "kd", "epochs": 1, "teachers": [FURTHER]}
    with pytest.raises(ConfigError) as caught:
        run(replace(inputs, artifacts=artifacts), DistillConfig.model_validate(keys), context)
    (problem,) = caught.value.problems
    assert "of 100 validation samples (mean of the classes 10.0 %): guessing gets 10.0 %" in problem.message
    assert problem.at == "[[distill.teachers]] further"
    assert "trust_teacher = true in [distill]" in problem.do
    assert not (context.folder / "weights.safetensors").exists()
    run(replace(inputs, artifacts=artifacts), DistillConfig.model_validate({**keys, "trust_teacher": True}), context)
    assert (context.folder / "weights.safetensors").exists()


@pytest.mark.parametrize(("attack", "said"), [({}, True), ({"attack": {"epsilon": 0.2}}, False)], ids=["no section", "epsilon chosen"])
def test_a_robust_objective_without_an_attack_section_takes_the_default_and_says_so(attack, said, inputs, context, tiny, listener):
    few = replace(inputs.data, train=replace(inputs.data.train, count=32), validation=replace(inputs.data.validation, count=16))
    config = DistillConfig.model_validate({**TINY, "objective": "at", "epochs": 1, **attack})
    run(replace(inputs, data=few), config, context)
    line = "distill: no epsilon in [distill.attack], the default is used: linf, epsilon 0.03137, 10 steps"
    assert (line in listener.said) == said
    assert json.loads(config.model_dump_json())["attack"]["epsilon"] == pytest.approx(0.2 if attack else 8 / 255)


@pytest.mark.parametrize("name", names(PACKAGE))
def test_a_training_set_of_one_class_smaller_than_a_batch_is_learned_from_all_the_same(name, inputs, context, tiny):
    kind = objective_class(name, at="test")
    few = OneClass(inputs.data.train, np.flatnonzero(inputs.data.train.labels == 3)[:9])
    objective = kind.model_validate({"attack": {"epsilon": 0.1, "steps": 1}} if kind.robust else {})
    teachers = [tiny(seed=1 + number, width=0.5) for number in range(max(1, len(objective.teacher_roles)))] if objective.uses_teacher else None
    student = tiny()
    history = train(
        student,
        objective,
        teachers,
        replace(inputs, data=replace(inputs.data, train=few)),
        TrainingConfig(epochs=1, batch_size=64),
        context,
        label="distill",
        fresh=lambda: tiny(seed=5).module,
    )
    assert np.isfinite(history.epochs[0].loss["total"])
    assert all(torch.isfinite(value).all() for value in student.module.state_dict().values())
    assert not torch.equal(next(iter(student.module.parameters())), next(iter(tiny().module.parameters())))


@dataclass(frozen=True)
class OneClass:
    """The samples of a split at these indices."""

    whole: Any
    indices: Any

    @property
    def labels(self):
        return self.whole.labels[self.indices]

    def __len__(self):
        return len(self.indices)

    def read(self, indices):
        return self.whole.read(self.indices[indices])


def test_defaults_are_the_tasks_student_and_a_robust_objective():
    config = DistillConfig.model_validate({})
    assert config.student is None
    assert config.objective.name == "rslad"


ATTACK = {"epsilon": 0.1, "steps": 3}
SHORT = {"epochs": 6, "batch_size": 64, "learning_rate": 0.1}
NATURAL = {"name": "natural", "role": "natural", "network": "resnet-8", "network_arguments": {"width": 0.5}, "objective": "plain", **SHORT}


class Lesson:
    """A robust and a natural teacher of all training digits, and what students that all begin alike learn from them; each is trained once."""

    def __init__(self, folder):
        self.folder = folder
        task = ImageClassification(data="digits")
        self.data = task.load(folder, seed=0)
        inputs = Inputs({}, self.data, task)
        robust = {"network": "resnet-8", "network_arguments": {"width": 0.5}, "objective": "trades", "attack": ATTACK, **SHORT}
        teacher = run_teacher(inputs, TeacherConfig.model_validate(robust), self._context("teacher"))
        natural = run_teacher(inputs, FurtherTeacher.model_validate(NATURAL).training(), self._context("natural"))
        self.inputs = replace(inputs, artifacts={"teacher": teacher, "teacher-natural": natural})
        self.x = torch.from_numpy(self.data.validation.read(np.arange(len(self.data.validation))))
        self.target = self._answers(teacher)
        self._learned = {}

    def learned(self, name, **keys):
        """(distance to the robust teacher's answers, clean accuracy, accuracy under PGD-10) of the objective's student, on the validation split."""
        if name not in self._learned:
            config = DistillConfig.model_validate({**TINY, "objective": name, **SHORT, **keys})
            student = run(self.inputs, config, self._context(name))
            validation = validate(load_network(student).module, self.data.validation, 256, Attack(epsilon=0.1), 179, 0, "test")
            distance = (self._answers(student) - self.target).abs().sum(1).mean().item()
            self._learned[name] = (distance, validation.clean_accuracy, validation.robust_accuracy)
        return self._learned[name]

    def _answers(self, network):
        with torch.no_grad():
            return load_network(network).module(self.x).softmax(1)

    def _context(self, name):
        torch.set_num_threads(1)
        (self.folder / name).mkdir()
        return Context(folder=self.folder / name, project=self.folder, seed=0, threads=1, progress=SilentProgress())


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return Lesson(tmp_path_factory.mktemp("lesson"))


@pytest.mark.slow
def test_objectives_teach_what_they_are_for(lesson):
    """Distillation brings the student nearer to the teacher, attacks make it robust. Measured: distance 0.46 from labels, 0.17 to 0.20 from the teacher."""
    keys = {"kd": {"temperature": 2.0}, "hierarchical": {"temperature": 2.0}, "at": {"attack": ATTACK}, "rslad": {"attack": ATTACK}}
    learned = {name: lesson.learned(name, **keys.get(name, {})) for name in ("plain", "kd", "pointwise", "hierarchical", "at", "rslad")}
    distance, clean, robustness = ({name: figures[k] for name, figures in learned.items()} for k in range(3))
    assert all(accuracy > 0.8 for accuracy in clean.values()), clean
    for name in ("kd", "pointwise", "hierarchical", "rslad"):
        assert distance[name] < 0.9 * distance["plain"], (name, distance)
    for name in ("at", "rslad"):
        assert robustness[name] > robustness["plain"] + 0.1, (name, robustness)  # 179 samples: two standard deviations are about 0.1
    assert robustness["rslad"] > robustness["kd"], robustness


@pytest.mark.parametrize(
    ("student", "message", "do"),
    [
        ("resnet-7", "resnet-7", "resnet"),
        ("nowhere:net", "cannot import 'nowhere'", "importable from the project's folder"),
        ("os:getcwd", "the factory 'os:getcwd' returned str, not an nn.Module", "return the network"),
    ],
)
def test_a_student_that_cannot_be_built_is_told_before_the_teacher_is_trained(student, message, do, inputs):
    with pytest.raises(ConfigError) as caught:
        check({"distill": DistillConfig.model_validate({"student": student})}, replace(inputs, artifacts={}))
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.at == "[distill] student"
    assert do in problem.do


@pytest.mark.slow
def test_every_objective_with_an_attack_teaches_more_robustness_than_the_labels_alone(lesson):
    """Measured: plain 34 %, the others 62 to 69 % under PGD-10."""
    names_ = ("ard", "iad", "adaad", "mart", "alternating", "mtard")
    learned = {name: lesson.learned(name, attack=ATTACK, **({"teachers": [NATURAL]} if name == "mtard" else {})) for name in names_}
    learned["plain"] = lesson.learned("plain")
    assert all(clean > 0.8 for _, clean, _ in learned.values()), learned
    robustness = {name: robust for name, (_, _, robust) in learned.items()}
    count = len(lesson.x)
    assert wilson(round(robustness["mtard"] * count), count)[0] > wilson(round(robustness["plain"] * count), count)[1], robustness
    assert all(robustness[name] > robustness["plain"] + 0.1 for name in names_), robustness
