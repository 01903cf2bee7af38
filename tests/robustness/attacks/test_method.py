import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.robustness.attacks.method import Draws, Strongest, asked, margins, parse_attack


def parsed(name, norm="linf"):
    return parse_attack(name, norm=norm, epsilon=0.1, at="kdpipe.toml:40")


@pytest.mark.parametrize(
    ("name", "kind", "steps", "restarts"),
    [("fgsm", "Fgsm", 1, 1), ("pgd-20", "Pgd", 20, 1), ("pgd-10x5", "Pgd", 10, 5), ("pgd", "Pgd", 20, 1), ("square-500", "Square", 500, 1)],
)
def test_a_name_says_method_steps_and_restarts(name, kind, steps, restarts):
    attack = parsed(name)
    assert (type(attack).__name__, attack.steps, attack.restarts) == (kind, steps, restarts)
    assert (attack.norm, attack.epsilon) == ("linf", 0.1)


def test_a_users_own_attack_is_found_by_module_and_name():
    assert parsed("kdpipe.robustness.attacks.methods.pgd:Pgd-7x2").restarts == 2


@pytest.mark.parametrize(
    ("name", "message", "do"),
    [
        ("pdg-20", "unknown name 'pdg'", "did you mean 'pgd'"),
        ("pgd-0", "'pgd-0' is not an attack that 'pgd' can do: steps = 0", "pgd-10x5"),
        ("fgsm-5", "steps = 5", "pgd-10x5"),
        ("square-100x3", "restarts = 3", "pgd-10x5"),
        ("", "the name of an attack is empty", "pgd-20"),
    ],
    ids=["misspelt", "no steps", "steps it has not", "restarts it has not", "empty"],
)
def test_what_is_no_attack_is_refused(name, message, do):
    with pytest.raises(ConfigError) as caught:
        parsed(name)
    problem = caught.value.problems[0]
    assert message in problem.message
    assert problem.at == "kdpipe.toml:40"
    assert do in problem.do


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 2))
def test_the_margin_is_negative_exactly_where_the_label_is_alone_at_the_top(rows, label):
    logits = torch.tensor(rows, dtype=torch.float32)
    labels = torch.full((len(rows),), label)
    for row, margin in zip(rows, margins(logits, labels), strict=True):
        others = row[:label] + row[label + 1 :]
        assert margin == max(others) - row[label]
        assert (margin < 0) == (row[label] > max(others))


def test_the_strongest_point_of_each_sample_is_kept():
    strongest = Strongest(torch.zeros(3, 2))
    strongest.offer(torch.ones(3, 2), torch.tensor([-1.0, -2.0, 0.5]))
    strongest.offer(torch.full((2, 2), 2.0), torch.tensor([-0.5, -3.0]), torch.tensor([0, 1]))
    assert strongest.x_adv.tolist() == [[2, 2], [1, 1], [1, 1]]
    assert strongest.margins.tolist() == [-0.5, -2, 0.5]


def test_each_sample_draws_by_its_index():
    draws = Draws(0, "attack/pgd-20", np.array([5, 9]))
    first, second = (torch.rand(3, generator=generator) for generator in draws.generators())
    (again,) = (torch.rand(3, generator=generator) for generator in draws.at(torch.tensor([1])).generators())
    (other,) = (torch.rand(3, generator=generator) for generator in draws.at(torch.tensor([1])).generators(restart=1))
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
    assert not torch.equal(again, other)


def test_a_black_box_that_answers_with_nan_is_told():
    with pytest.raises(VerificationError) as caught:
        asked(lambda x: np.full((len(x), 2), np.nan, dtype=np.float32))(torch.rand(1, 3))
    problem = caught.value.problems[0]
    assert problem.message == "the model answers with NaN"
    assert problem.at == "the model under attack"
    assert "calibration" in problem.do
