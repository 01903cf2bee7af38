from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import Network
from kdpipe.stages.classes import InOrder
from kdpipe.stages.trust import require_trust, standing


@dataclass(frozen=True)
class Told:
    """A split whose samples are their labels' one-hot logits times 4, so that the identity is always right."""

    labels: np.ndarray
    classes: int

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        return 4 * np.eye(self.classes, dtype=np.float32)[self.labels[indices]]


class Always(nn.Module):
    """The same answer to everything."""

    def __init__(self, answer, classes):
        super().__init__()
        self.answer, self.classes = answer, classes

    def forward(self, x):
        logits = torch.zeros(len(x), self.classes)
        logits[:, self.answer] = 1
        return logits


class Shifted(nn.Module):
    """Right about everything, but for classes that are called by their neighbours' names."""

    def forward(self, x):
        return x.roll(1, dims=1)


EVEN = Told(np.arange(400) % 4, 4)
UNBALANCED = Told(np.repeat([0, 1], [360, 40]), 2)


def test_the_standing_is_counted_over_the_split():
    found = standing(nn.Identity(), EVEN, 4)
    assert (found.correct, found.n, found.balanced, found.chance) == (400, 400, 1.0, 0.25)
    assert not found.guesses


def test_who_always_says_the_same_only_guesses_however_often_it_is_right():
    found = standing(Always(0, 2), UNBALANCED, 2)
    assert (found.correct, found.balanced, found.guesses) == (360, 0.5, True)


def test_a_teacher_is_judged_on_the_classes_that_it_knows():
    found = standing(InOrder(nn.Identity(), (0, 1, None, None)), EVEN, 4)
    assert (found.n, found.chance, found.balanced) == (200, 0.5, 1.0)


@pytest.mark.parametrize(("module", "accuracy"), [(Shifted(), "0.0"), (Always(2, 4), "25.0")], ids=["labels in another order", "one answer"])
def test_a_teacher_that_guesses_is_refused_with_its_accuracy_and_n(module, accuracy, digits, listener):
    data = replace(digits, validation=EVEN, classes=("a", "b", "c", "d"))
    with pytest.raises(ConfigError) as caught:
        require_trust([("[teacher]", Network(None, module))], data, listener, forced=False)
    (problem,) = caught.value.problems
    told = f"right in {accuracy} % of 400 validation samples (mean of the classes {accuracy} %)"
    assert problem.message == f"the teacher is {told}: guessing gets 25.0 %"
    assert problem.at == "[teacher]"
    assert "same order" in problem.do
    assert problem.do.endswith("to learn from it all the same: trust_teacher = true in [distill]")
    require_trust([("[teacher]", Network(None, module))], data, listener, forced=True)
    assert listener.said == [f"[teacher]: the teacher is {told}, not clearly more than a guess (25.0 %)"]


def test_a_teacher_that_cannot_be_told_from_a_guess_is_said_and_learned_from(digits, listener):
    class Hardly(nn.Module):
        def forward(self, x):
            logits = x.roll(1, dims=1)
            logits[:3] = x[:3]
            return logits

    few = Told(np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), 4)
    data = replace(digits, validation=few, classes=("a", "b", "c", "d"))
    require_trust([("[[distill.teachers]] b", Network(None, Hardly()))], data, listener, forced=False)
    (said,) = listener.said
    assert said.startswith("[[distill.teachers]] b: the teacher is right in 30.0 % of 10 validation samples (mean of the classes 29.2 %), ")
    assert said.endswith("not clearly more than a guess (25.0 %)")


def test_a_good_teacher_is_not_spoken_of(digits, listener):
    require_trust([("[teacher]", Network(None, nn.Identity()))], replace(digits, validation=EVEN, classes=("a", "b", "c", "d")), listener, forced=False)
    assert listener.said == []
