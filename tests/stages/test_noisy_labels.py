"""Objectives for wrong labels in the stages that use them, and what they are for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdpipe.foundation.networks import build_network, load_network, save_network
from kdpipe.foundation.randomness import stream
from kdpipe.robustness.intervals import paired_difference
from kdpipe.stages import prune, qat
from kdpipe.stages.distill import DistillConfig, run
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.prune import PruneConfig
from kdpipe.stages.qat import QatConfig
from kdpipe.stages.stage import Inputs
from kdpipe.stages.teacher import TeacherConfig
from kdpipe.stages.teacher import run as run_teacher
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.targets.profile import load_profile
from kdpipe.tasks.image_classification import ImageClassification

TINY = {"student": "resnet-8", "student_arguments": {"width": 0.25}}
NAMES = ["gce", "sce", "elr", "co-teaching", "correction"]


@pytest.fixture
def artifacts(inputs, tiny, tmp_path):
    """Inputs with a teacher, and a student wherever a stage looks for one."""
    network = tiny(width=0.5)
    network.module.eval()
    for name, one in (("teacher", tiny(seed=1, width=0.5)), ("student", network)):
        one.module.eval()
        save_network(one, tmp_path / name)
    folders = {"teacher": tmp_path / "teacher", "distill": tmp_path / "student", "prune": tmp_path / "student"}
    return replace(inputs, artifacts=folders)


@pytest.fixture
def folder(context, tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        return replace(context, folder=tmp_path / name)

    return make


def objective_of(stage_folder):
    return [training["objective"] for training in json.loads((stage_folder / "history.json").read_text())["trainings"]]


@pytest.mark.parametrize("name", NAMES)
def test_distillation_keeps_the_student_alone(name, artifacts, folder):
    config = DistillConfig.model_validate({**TINY, "objective": name, "epochs": 1, "trust_teacher": True})

    made = run(artifacts, config, folder("out"))

    assert sorted(path.name for path in made.iterdir()) == ["history.json", "network.json", "weights.safetensors"]
    assert objective_of(made) == [name]
    assert load_network(made).spec.arguments["width"] == 0.25


def test_the_peer_of_co_teaching_starts_from_weights_of_its_own(artifacts, folder, monkeypatch):
    from kdpipe.stages.objectives import co_teaching

    peers = []
    peer = co_teaching.Peer.__init__
    monkeypatch.setattr(co_teaching.Peer, "__init__", lambda self, network: peers.append(network) or peer(self, network))
    config = DistillConfig.model_validate({**TINY, "objective": "co-teaching", "epochs": 1})

    run(artifacts, config, folder("out"))

    [its] = peers
    from kdpipe.stages.distill import fresh_student

    student = fresh_student(config, artifacts, seed=0).module
    assert {name: value.shape for name, value in its.state_dict().items()} == {name: value.shape for name, value in student.state_dict().items()}
    assert not torch.equal(next(its.parameters()), next(student.parameters()))


@pytest.mark.parametrize("name", ["elr", "co-teaching"])
def test_pruning_scores_and_fine_tunes_by_them_without_a_peer(name, artifacts, folder):
    objective = parse_objective(name, {"noise_rate": 0.4} if name == "co-teaching" else {}, at="test")
    config = PruneConfig.model_validate({"epochs": 1, "steps": 1, "batch_size": 64, "speedup": 1.3, "importance_batches": 2})

    made = prune.run(artifacts, config.model_copy(update={"objective": objective}), folder("out"))

    assert objective_of(made) == [name]
    terms = json.loads((made / "history.json").read_text())["trainings"][0]["epochs"][0]["loss"]
    assert "peer" not in terms


@pytest.mark.parametrize("name", ["elr", "co-teaching"])
def test_quantization_aware_training_runs_by_them_without_a_peer(name, artifacts, folder):
    objective = parse_objective(name, {}, at="test")
    config = QatConfig(epochs=1, batch_size=64, objective=objective, learning_rate=1e-4)

    made = qat.run(replace(artifacts, profile=load_profile("cpu", at="test")), config, folder("out"))

    assert objective_of(made) == [name]
    terms = json.loads((made / "history.json").read_text())["trainings"][0]["epochs"][0]["loss"]
    assert "peer" not in terms


def test_they_train_a_teacher_too_but_not_with_a_share_for_one(inputs, folder):
    keys = {"network": "resnet-8", "network_arguments": {"width": 0.25}, "objective": "co-teaching", "epochs": 1}

    assert objective_of(run_teacher(inputs, TeacherConfig.model_validate(keys), folder("out"))) == ["co-teaching"]
    with pytest.raises(ValueError, match="'gce' needs a teacher, and this is the teacher"):
        TeacherConfig.model_validate({"objective": "gce", "teacher_share": 0.5})


MLP = """
from torch import nn

def mlp(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes))
"""


@pytest.mark.slow
def test_each_keeps_what_cross_entropy_forgets_on_digits_of_which_four_in_ten_are_wrong(context, tmp_path, monkeypatch, listener):
    """A network large enough to memorise, trained to the end: the split that epochs are chosen by is the training split, so that nothing stops it early."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "memorising_mlp.py").write_text(MLP)
    task = ImageClassification.model_validate({"data": "digits", "label_noise": {"rate": 0.4}})
    held_out = task.load(tmp_path, 0)
    to_the_end = replace(held_out, validation=held_out.train)
    config = TrainingConfig(epochs=25, batch_size=64, learning_rate=0.1)
    test = torch.from_numpy(held_out.test.read(np.arange(len(held_out.test))))

    def fresh(use):
        return build_network(task.network_spec("memorising_mlp:mlp", {"classes": 10}, held_out, at="test"), stream(0, use))

    def trained(name, data, teacher=None, **keys):
        network = fresh("student" if data is to_the_end else "teacher")
        own = replace(context, folder=tmp_path / f"{name}-{len(keys)}-{data is to_the_end}")
        train(
            network, parse_objective(name, keys, at="test"), teacher, Inputs({}, data, task), config, own, label="distill", fresh=lambda: fresh("peer").module
        )
        return network

    def correct(network):
        with torch.no_grad():
            return network.module(test).argmax(1).numpy() == held_out.test.labels

    plain = correct(trained("plain", to_the_end))
    teacher = trained("plain", held_out)  # stopped early: its best epoch on validation labels, four in ten of which are wrong as well
    assert plain.mean() < 0.85
    assert correct(teacher).mean() > 0.87
    for name, keys in {"gce": {}, "sce": {}, "elr": {}, "co-teaching": {"noise_rate": 0.4}, "correction": {}}.items():
        own = trained(name, to_the_end, teacher if name == "correction" else None, **keys)
        assert paired_difference(correct(own), plain).low > 4, (name, paired_difference(correct(own), plain))  # points; 10 to 13 when this was written
