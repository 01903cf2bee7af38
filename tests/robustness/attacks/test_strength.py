import pytest

from kdpipe.robustness.attacks.method import parse_attack
from kdpipe.robustness.attacks.strength import strongest
from kdpipe.robustness.scorecard import AttackFigure, Figure


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["fgsm", "pgd-20"], "pgd-20"),
        (["pgd-10x5", "pgd-20"], "pgd-10x5"),
        (["square-5000", "fgsm"], "fgsm"),
        (["cw-20", "pgd-20"], "cw-20"),
        (["square-10", "square-20"], "square-20"),
    ],
    ids=["more steps", "restarts count", "gradients go first", "the first of equals", "black boxes alone"],
)
def test_the_order(names, first):
    assert strongest(names, lambda name: parse_attack(name, norm="linf", epsilon=0.1, at="here")) == first


def test_of_nothing_there_is_none():
    assert strongest([], lambda attack: attack) is None


def test_figures_of_a_scorecard_are_ordered_alike():
    figures = [
        AttackFigure(name=f"pgd-{steps}x{restarts}", norm="linf", epsilon=0.1, steps=steps, restarts=restarts, crafted_on=("twin",), accuracy=Figure(value=1.0))
        for steps, restarts in ((20, 1), (10, 5), (30, 1))
    ]
    assert strongest(figures, lambda figure: figure).name == "pgd-10x5"
