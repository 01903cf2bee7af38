import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.stages.channel_choice import Limits
from kdpipe.stages.channel_groups import ChannelGroup
from kdpipe.stages.latency_search import cumulative, evenly, fastest, least_loss, lowest, steps_of


def group(scores, name="a", mean=1.0):
    return ChannelGroup(name, (), torch.tensor(scores, dtype=torch.float32), mean)


def blocks(width, block=16):
    return math.ceil(width / block)


def test_what_stays_is_a_multiple_within_the_limit():
    assert steps_of(group([1.0] * 16), Limits(4, {"a": 9})) == (0, 4, 8)
    assert steps_of(group([1.0] * 18), Limits(4, {"a": 9})) == (0, 2, 6)
    assert steps_of(group([1.0] * 16), Limits(4, {"a": 0})) == (0,)


def test_a_wide_group_is_tried_at_fewer_widths():
    steps = steps_of(group([1.0] * 960), Limits(4, {"a": 672}))
    assert len(steps) <= 26
    assert {(960 - step) % 32 for step in steps} == {0}


def test_a_plateau_does_not_stop_the_search():
    """One block of four saves nothing of a kernel that works in sixteens; four of them do."""
    rising = [1.0, 2.0] * 32
    removed = least_loss([cumulative(group(sorted(rising)), raw=False)], [tuple(range(0, 49, 4))], lambda r: blocks(64 - r[0]) * 1.0, 3.0)
    assert removed == (16,)


def test_what_costs_nothing_is_not_taken():
    """To 40 of 64 would do, and takes as long as 48."""
    removed = least_loss([np.arange(65.0)], [tuple(range(0, 49, 8))], lambda r: blocks(64 - r[0]) * 1.0, 3.0)
    assert removed == (16,)


def test_a_width_that_the_kernels_dislike_is_passed_over():
    slow_at = {8: 9.0, 16: 5.0, 24: 7.0, 32: 10.0}
    assert least_loss([np.arange(33.0)], [(0, 8, 16, 24)], lambda r: slow_at[32 - r[0]], 8.0) == (8,)
    assert least_loss([np.arange(33.0)], [(0, 8, 16, 24)], lambda r: slow_at[32 - r[0]], 6.0) == (16,)
    assert fastest([(0, 8, 16, 24)], lambda r: slow_at[32 - r[0]]) == (16,)  # not the narrowest
    assert least_loss([np.arange(33.0)], [(0, 8, 16, 24)], lambda r: slow_at[32 - r[0]], 4.9) is None


def test_importance_for_each_millisecond_decides_between_groups():
    """The first group's channels matter half as much, and its time hardly changes."""
    losses = [np.arange(17.0), np.arange(17.0) * 2]
    assert least_loss(losses, [(0, 8), (0, 8)], lambda r: 20 - 0.1 * r[0] - r[1], 12.5) == (0, 8)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_choice_meets_the_goal_and_is_not_far_from_the_best(data):
    count = data.draw(st.integers(1, 3))
    scores = [data.draw(st.lists(st.floats(0.1, 2), min_size=8, max_size=8)) for _ in range(count)]
    weights = [data.draw(st.floats(0.5, 3)) for _ in range(count)]
    losses = [np.concatenate([[0.0], np.cumsum(sorted(each))]) for each in scores]
    steps = [tuple(range(0, 7, 2))] * count

    def milliseconds(removed):
        return 1 + sum(weight * blocks(8 - gone, 4) for weight, gone in zip(weights, removed, strict=True))

    goal = milliseconds((0,) * count) * data.draw(st.floats(0.4, 0.95))
    all_choices = [choice for choice in itertools.product(*steps) if milliseconds(choice) <= goal]
    removed = least_loss(losses, steps, milliseconds, goal)
    if not all_choices:
        assert removed is None
        return
    assert removed is not None
    assert milliseconds(removed) <= goal

    def lost(choice):
        return sum(loss[gone] for loss, gone in zip(losses, choice, strict=True))

    assert lost(removed) <= 1.5 * min(map(lost, all_choices)) + 1e-9  # greedy with exchanges: a knapsack in blocks has no small bound


def test_lowest_channels_go_first_and_equal_ones_in_order():
    [(_, channels)] = lowest([group([0.5, 0.1, 0.5, 0.2])], (3,))
    assert channels == [0, 1, 3]


def test_raw_scores_are_those_before_the_division():
    assert cumulative(group([1.5, 0.5], mean=4.0), raw=True).tolist() == pytest.approx([0, 2, 8])
    assert cumulative(group([1.5, 0.5], mean=4.0), raw=False).tolist() == pytest.approx([0, 0.5, 2])


def test_half_of_any_group_is_the_same_evenly_and_the_last_channel_is_not_to_be_had():
    assert evenly(64)[32] == pytest.approx(evenly(16)[8]) == pytest.approx(math.log(2))
    assert evenly(16)[0] == 0
    assert (np.diff(evenly(16)) > 0).all()
    assert evenly(16)[16] == math.inf
