import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kdpipe.stages.schedule import Positive, Scheduled, Share, Weight, learning_rate


class Keys(BaseModel):
    positive: Positive = Scheduled.constant(1)
    share: Share = Scheduled.constant(1)
    weight: Weight = Scheduled.constant(1)


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_a_value_goes_from_one_end_to_the_other_and_never_beyond(start, end, progress, shape):
    value = Scheduled.model_validate({"from": start, "to": end, "shape": shape})
    assert value.at(0) == pytest.approx(start)
    assert value.at(1) == pytest.approx(end)
    assert value.at(0.5) == pytest.approx((start + end) / 2)
    assert min(start, end) - 1e-9 <= value.at(progress) <= max(start, end) + 1e-9


def test_the_cosine_is_slow_at_both_ends():
    value = Scheduled.model_validate({"from": 0, "to": 1, "shape": "cosine"})
    assert value.at(0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)


def test_a_number_is_constant_and_is_written_as_a_number():
    keys = Keys.model_validate({"positive": 4})
    assert keys.positive.at(0.3) == 4.0
    assert keys.model_dump(mode="json")["positive"] == 4.0
    ramp = Keys.model_validate({"positive": {"from": 4, "to": 2}})
    assert ramp.model_dump(mode="json")["positive"] == {"from": 4.0, "to": 2.0, "shape": "linear"}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("positive", 0, "greater_than"),
        ("positive", {"from": 1, "to": -1}, "greater_than"),
        ("share", 1.1, "less_than_equal"),
        ("share", {"from": -0.1, "to": 1}, "greater_than_equal"),
        ("weight", -1, "greater_than_equal"),
        ("weight", True, "model_type"),
        ("weight", float("nan"), "finite_number"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_at_both_ends(key, value, kind):
    with pytest.raises(ValidationError) as caught:
        Keys.model_validate({key: value})
    assert kind in {error["type"] for error in caught.value.errors()}
    assert all(error["loc"][0] == key for error in caught.value.errors())


def test_multi_step_drops_to_a_tenth_and_then_to_a_hundredth():
    rates = [learning_rate(0.1, progress, schedule="multi-step") for progress in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])  # published ARD and IAD scripts stay at 0.01


def test_the_cosine_rate_starts_at_the_base_and_ends_at_nothing():
    assert learning_rate(0.1, 0.0) == pytest.approx(0.1)
    assert learning_rate(0.1, 0.5) == pytest.approx(0.05)
    assert learning_rate(0.1, 1.0) == pytest.approx(0.0)
    assert learning_rate(0.1, 0.7, schedule="constant") == 0.1


def test_warm_up_rises_in_a_line_and_then_the_schedule_begins():
    assert learning_rate(0.1, 0.05, warmup=0.1) == pytest.approx(0.05)
    assert learning_rate(0.1, 0.1, warmup=0.1) == pytest.approx(0.1)
    assert learning_rate(0.1, 0.55, warmup=0.1) == pytest.approx(0.05)
