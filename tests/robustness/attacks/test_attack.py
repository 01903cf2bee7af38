import pytest
from pydantic import ValidationError

from kdpipe.robustness.attacks.attack import Attack


def test_the_step_crosses_the_ball_by_default():
    attack = Attack(epsilon=0.1, steps=10)
    assert attack.resolved_step_size() == pytest.approx(0.025)
    assert Attack(epsilon=0.1, step_size=0.01).resolved_step_size() == 0.01


@pytest.mark.parametrize("epsilon", [0, -0.1, 8.0, float("nan"), float("inf")])
def test_an_epsilon_that_is_no_radius_in_the_unit_range_is_refused(epsilon):
    with pytest.raises(ValidationError, match="epsilon"):
        Attack(epsilon=epsilon)


def test_an_l2_ball_may_be_larger_than_one():
    assert Attack(norm="l2", epsilon=2.5).epsilon == 2.5


def test_swapped_epsilon_and_step_size_are_refused():
    with pytest.raises(ValidationError, match="are the two swapped"):
        Attack(epsilon=2 / 255, step_size=8 / 255)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="eps"):
        Attack(eps=0.1)
