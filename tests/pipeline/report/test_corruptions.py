from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from kdpipe.pipeline.report.corruptions import corruptions_told, error_against, errors_told, is_trained, trained_corruptions
from kdpipe.pipeline.results import Judged
from kdpipe.robustness.corruption_error import type_figures
from kdpipe.robustness.intervals import accuracy
from kdpipe.robustness.scorecard import CorruptionFigure, Figure, Scorecard

UNKNOWN = Figure(value=None, reason="not measured: a test")


def judged(model, rates, clean=0.1, n=200):
    generator = np.random.default_rng(0)
    cells = {cell: generator.permutation(np.arange(n)) >= rate * n for cell, rate in rates.items()}
    card = Scorecard(
        model=model,
        form="network",
        size_bytes=1,
        clean=UNKNOWN,
        nll=UNKNOWN,
        ece=UNKNOWN,
        robust=UNKNOWN,
        corruption_mean=UNKNOWN,
        corruptions=tuple(CorruptionFigure(name=name, severity=severity, accuracy=accuracy(right)) for (name, severity), right in cells.items()),
        corruption_types=type_figures(cells, seed=0),
    )
    correct = {f"corruption/{name}-{severity}": right for (name, severity), right in cells.items()}
    correct |= {"clean": np.arange(2 * n) >= 2 * n * clean, "indices/corruption": np.arange(0, 2 * n, 2)}
    return Judged(card, None, correct)


TEACHER = judged("teacher", {("fog", 1): 0.2, ("fog", 2): 0.4, ("snow", 1): 0.5, ("snow", 2): 0.7})
STUDENT = judged("student", {("fog", 1): 0.3, ("fog", 2): 0.6, ("snow", 1): 0.5, ("snow", 2): 0.7}, clean=0.2)


def build(**sections):
    return SimpleNamespace(config={"task": {"data": "digits", "augment": ["flip"]}, **sections})


def test_the_worst_corruption_is_told_with_its_error():
    assert errors_told(STUDENT).startswith("Worst: snow, error 60.0")
    assert "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}200" in errors_told(STUDENT)
    older = replace(STUDENT, card=STUDENT.card.model_copy(update={"corruption_types": ()}))
    assert errors_told(older) is None


def test_the_error_against_the_teacher_is_the_papers():
    told = error_against(STUDENT, TEACHER)
    assert told.startswith("Error against the teacher's, which is 100: mCE 125.0 [")  # (0.9 / 0.6 + 1.2 / 1.2) / 2
    relative = 100 * ((0.9 - 0.4) / (0.6 - 0.2) + (1.2 - 0.4) / (1.2 - 0.2)) / 2
    assert f"relative to the clean error {relative:.1f} [" in told


def test_a_file_of_several_is_compared_on_the_teachers_indices():
    file = replace(STUDENT, correct={name: array for name, array in STUDENT.correct.items() if name != "indices/corruption"})
    assert error_against(file, TEACHER) == error_against(STUDENT, TEACHER)


def test_models_that_were_not_asked_the_same_are_not_compared():
    assert error_against(judged("student", {("fog", 1): 0.3}), TEACHER) is None
    without = replace(TEACHER, correct={name: array for name, array in TEACHER.correct.items() if name != "indices/corruption"})
    assert error_against(STUDENT, without) is None


def test_a_teacher_without_errors_leaves_it_undefined():
    perfect = judged("teacher", dict.fromkeys((("fog", 1), ("fog", 2), ("snow", 1), ("snow", 2)), 0.0))
    assert error_against(STUDENT, perfect) == "Error against the teacher's not defined: the reference makes no error under fog."


def test_a_model_is_not_compared_with_itself():
    assert len(corruptions_told(TEACHER, TEACHER)) == 1
    assert len(corruptions_told(STUDENT, TEACHER)) == 2
    assert len(corruptions_told(STUDENT, None)) == 1


@pytest.mark.parametrize(
    ("sections", "trained"),
    [
        ({}, False),
        ({"task": {"data": "digits", "augment": ["noise"]}}, True),
        ({"distill": {"objective": "noise", "epochs": 3}}, True),
        ({"distill": {"objective": "augmix", "epochs": 3}}, False),
        ({"teacher": {"objective": "plain"}, "distill": {"objective": "rslad", "attack": {"epsilon": 0.1}}}, False),
    ],
    ids=["nothing", "augmentation", "objective", "augmix leaves them out", "robust"],
)
def test_what_was_trained_for_follows_from_augmentations_and_objectives(sections, trained):
    assert ("shot-noise" in trained_corruptions(build(**sections))) is trained


def test_augmix_with_overlapping_operations_trains_for_contrast():
    assert "contrast-c" in trained_corruptions(build(distill={"objective": "augmix", "overlapping": True}))


@pytest.mark.parametrize(("name", "found"), [("gaussian-noise-c", True), ("gaussian_noise", True), ("fog", False), ("shot_noise", True)])
def test_files_are_known_by_their_own_names(name, found):
    assert is_trained(name, ("gaussian-noise-c", "shot-noise")) is found
