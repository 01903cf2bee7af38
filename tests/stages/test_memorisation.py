from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.foundation.networks import Network, save_network
from kdpipe.stages.distill import DistillConfig, run
from kdpipe.stages.memorisation import Agreement, agreement, memorised, tell_memorisation
from kdpipe.tasks.image_classification import ImageClassification

HEART = ": it knows training labels by heart and will correct few that are wrong; train it for fewer epochs or with patience, "


class NearestNeighbour(nn.Module):
    """Answers with the label of the nearest training sample: all that it was told, by heart."""

    def __init__(self, split):
        super().__init__()
        self.x = torch.from_numpy(split.read(np.arange(len(split)))).flatten(1)
        self.votes = nn.functional.one_hot(torch.from_numpy(split.labels), 10).float()

    def forward(self, x):
        return self.votes[torch.cdist(x.flatten(1), self.x).argmin(dim=1)]


@pytest.fixture
def noisy(tmp_path):
    return ImageClassification.model_validate({"data": "digits", "label_noise": {"rate": 0.4}}).load(tmp_path, 0)


@pytest.fixture
def clean(tmp_path):
    return ImageClassification(data="digits").load(tmp_path, 0)


def test_agreement_is_counted_on_the_split_as_it_is(noisy, clean, tiny):
    network = Network(tiny().spec, NearestNeighbour(clean.train).train())

    assert agreement(network, clean.train, seed=0, name="train") == Agreement(1079, 1079)
    assert agreement(network, noisy.train, seed=0, name="train") == Agreement(1079 - 432, 1079)
    assert network.module.training


def test_a_teacher_that_gives_back_its_wrong_labels_is_told_so(noisy, tiny, listener):
    tell_memorisation(Network(tiny().spec, NearestNeighbour(noisy.train)), noisy, listener, seed=0)

    [said] = listener.said
    assert said.startswith("distill: the teacher agrees with 100.0% of the training labels and ")
    assert said.endswith(HEART + "or with objective = 'gce', 'sce' or 'elr', or on other data")


def test_one_that_answers_rightly_is_not_though_it_agrees_with_few_labels(noisy, clean, tiny, listener):
    tell_memorisation(Network(tiny().spec, NearestNeighbour(clean.train)), noisy, listener, seed=0)

    [said] = listener.said
    assert said.startswith("distill: the teacher agrees with 60.0% of the training labels and ")
    assert "by heart" not in said


@pytest.mark.parametrize(
    ("training", "validation", "expected"),
    [((950, 1000), (600, 1000), True), ((650, 1000), (600, 1000), False), ((19, 20), (15, 20), False), ((600, 1000), (900, 1000), False)],
    ids=["a wide gap", "a narrow one", "too few samples to tell", "the other way"],
)
def test_a_gap_counts_when_it_is_wide_and_no_chance(training, validation, expected):
    assert memorised(Agreement(*training), Agreement(*validation)) is expected


@pytest.mark.parametrize(("objective", "told"), [("correction", True), ("kd", False)])
def test_distillation_tells_it_when_the_teacher_corrects_labels(objective, told, inputs, context, tiny, listener):
    save_network(tiny(seed=1, width=0.5), context.project / "teacher")
    config = DistillConfig.model_validate(
        {"student": "resnet-8", "student_arguments": {"width": 0.25}, "objective": objective, "epochs": 1, "trust_teacher": True}
    )

    run(replace(inputs, artifacts={"teacher": context.project / "teacher"}), config, context)

    assert any("of the training labels and" in said for said in listener.said) is told
