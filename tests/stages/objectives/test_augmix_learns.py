"""AugMix against plain distillation on a real small set: Fashion-MNIST, 2,000 images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.foundation.randomness import stream
from kdpipe.robustness.comparison import paired_means
from kdpipe.robustness.corruption import corrupt
from kdpipe.stages.objectives.augmix import Augmix
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.objective import Step, Teacher
from kdpipe.stages.objectives.plain import Plain
from kdpipe.tasks.image_classification import ImageClassification

CORRUPTIONS = ("impulse-noise", "motion-blur", "fog", "contrast-c", "jpeg-compression", "gaussian-noise", "gaussian-blur", "pixelate")
SEVERITIES = (2, 4)
TRAINED, JUDGED, EPOCHS = 2000, 1000, 20


def network(width, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.AvgPool2d(2),
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2 * width * 49, 10)),
        )


def trained(student, objective, teachers, x, labels):
    optimizer, generator = torch.optim.AdamW(student.parameters(), 3e-3), stream(0, "training")
    student.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            objective.loss(Step(x[rows], labels[rows], rows, student, generator, teachers=teachers)).total.backward()
            optimizer.step()
    return student.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.skipif("KDPIPE_DATA" not in os.environ, reason="needs Fashion-MNIST: set KDPIPE_DATA to the folder of the data sets")
def test_it_is_more_accurate_under_corruption_than_kd(tmp_path: Path) -> None:
    """Measured: 1.7 points [1.0, 2.4], with another initial student 2.6 [1.8, 3.4]; after 8 epochs and on 400 images it is not shown yet: 0.5 [-0.4, 1.5]."""
    data = ImageClassification(data="fashion-mnist").load(tmp_path, seed=0)
    rows = np.arange(TRAINED)
    x, labels = torch.from_numpy(data.train.read(rows)), torch.from_numpy(data.train.labels[rows])
    judged = np.arange(JUDGED)
    images, truth = data.validation.read(judged), torch.from_numpy(data.validation.labels[judged])
    corrupted = [torch.from_numpy(corrupt(name, images, severity, seed=0, indices=judged)) for name in CORRUPTIONS for severity in SEVERITIES]
    teacher = Teacher(trained(network(16, 1), Plain(), (), x, labels))

    shares = []
    for objective in (Augmix(), Kd()):
        student = trained(network(8, 2), objective, (teacher,), x, labels)
        shares.append(torch.stack([(student(cell).argmax(1) == truth).double() for cell in corrupted]).mean(0).numpy())

    difference = paired_means(100 * shares[0], 100 * shares[1], seed=0, name="augmix")
    assert difference.low > 0
