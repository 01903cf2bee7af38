"""That objectives without an attack teach what they are for: on real digits, against the same student without them, on the same test samples."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest

from kdpipe.foundation.networks import build_network
from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.comparison import paired_means
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.tasks.image_classification import ImageClassification

pytestmark = pytest.mark.slow

SIGMA = 0.3
"""of the noise on the test samples, as a share of the value range"""


@dataclass(frozen=True)
class Labelled:
    """The first samples of a split, with labels of which a share is wrong."""

    whole: object
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        return self.whole.read(indices)


def first(split, count, wrong):
    labels, draws = split.labels[:count].copy(), numpy_stream(0, "wrong labels")
    chosen = draws.permutation(count)[: round(wrong * count)]
    labels[chosen] = (labels[chosen] + draws.integers(1, 10, len(chosen))) % 10
    return Labelled(split, labels)


class Lesson:
    """A teacher of the whole training split, and students of 200 samples of it that all begin alike."""

    def __init__(self, folder):
        self.folder = folder
        self.task = ImageClassification(data="digits", augment=())
        self.data = self.task.load(folder, seed=0)
        self.x = torch.from_numpy(self.data.test.read(np.arange(len(self.data.test))))
        self.labels = torch.from_numpy(self.data.test.labels)
        self.teacher = self._network(seed=1, width=1.0)
        self._train(self.teacher, "plain", {}, self.data.train, epochs=6)
        self._students = {}

    def student(self, name, keys=None, *, wrong=0.0):
        """The student after 20 epochs of the objective; each is trained once."""
        key = (name, wrong)
        if key not in self._students:
            self._students[key] = self._network(seed=0, width=0.25)
            self._train(self._students[key], name, keys or {}, first(self.data.train, 200, wrong), epochs=20)
        return self._students[key].module

    def right(self, module, x=None):
        """Per test sample whether it is answered rightly."""
        with torch.no_grad():
            return (module(self.x if x is None else x).argmax(dim=1) == self.labels).numpy()

    def _network(self, *, seed, width):
        return build_network(self.task.network_spec("resnet-8", {"width": width}, self.data, at="test"), stream(seed, "lesson"))

    def _train(self, network, name, keys, split, epochs):
        torch.set_num_threads(1)
        number = len(list(self.folder.iterdir()))
        context = Context(self.folder / f"training-{number}", self.folder, 0, 1, SilentProgress())
        config = TrainingConfig(epochs=epochs, batch_size=32, learning_rate=0.1)
        inputs = Inputs({}, replace(self.data, train=split), self.task)
        objective = parse_objective(name, keys, at="test")
        train(network, objective, self.teacher if objective.uses_teacher else None, inputs, config, context, label="lesson")


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return Lesson(tmp_path_factory.mktemp("lesson"))


def require_better(better, worse):
    """More of the same samples right, by McNemar's exact test, and by the whole of the paired interval."""
    gained, lost = int((better & ~worse).sum()), int((worse & ~better).sum())
    assert binomtest(gained, gained + lost, alternative="greater").pvalue < 0.01, (gained, lost)
    assert paired_means(better.astype(float), worse.astype(float), seed=0, name="lesson").low > 0


@pytest.mark.parametrize("name", ["dkd", "dist", "attention", "relational", "pointwise"])
def test_where_labels_are_wrong_a_student_of_a_teacher_is_better_than_one_of_the_labels_alone(name, lesson):
    """Measured: labels alone 64.7 % right, attention 76.4, dkd 84.8, relational 85.9, dist 88.5, pointwise 94.2 %."""
    assert lesson.right(lesson.teacher.module).mean() > 0.95
    require_better(lesson.right(lesson.student(name, wrong=0.4)), lesson.right(lesson.student("plain", wrong=0.4)))


def test_noise_in_training_helps_against_noise(lesson):
    """Measured: 111 samples gained, 15 lost of 539."""
    noisy = (lesson.x + SIGMA * torch.randn(lesson.x.shape, generator=stream(0, "noise"))).clamp(0, 1)
    require_better(lesson.right(lesson.student("noise", {"sigma": SIGMA}), noisy), lesson.right(lesson.student("plain"), noisy))


def test_a_penalty_on_the_input_gradient_helps_against_an_attack(lesson):
    """Measured: 157 samples gained, 18 lost of 539."""

    def under_attack(module):
        with quiet(module):
            x_adv = maximise(
                lesson.x, lambda x: F.cross_entropy(module(x), lesson.labels, reduction="none"), Attack(epsilon=0.1, steps=10), stream(0, "attack")
            )
        return lesson.right(module, x_adv)

    require_better(under_attack(lesson.student("gradient-penalty")), under_attack(lesson.student("plain")))
