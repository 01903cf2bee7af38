import math

import pytest
import torch

from kdpipe.stages.channel_choice import Limits
from kdpipe.stages.channel_groups import ChannelGroup
from kdpipe.stages.latency_search import steps_of
from kdpipe.stages.latency_ways import WAYS, Cut

WIDTH = 64


class Blocks:
    """Milliseconds of groups that work in blocks of sixteen, or of four."""

    def __init__(self, block=16):
        self.block = block

    def ms(self, removed, scale):
        return scale * sum(math.ceil((WIDTH - gone) / self.block) * self.block for gone in removed) / WIDTH


@pytest.fixture
def cut():
    """Two groups; the first one's channels matter a tenth of the second's. The goal: half the time, at most three quarters of a group gone."""

    def make(block=16, round_to=4):
        rising = torch.linspace(0.5, 1.5, WIDTH)
        groups = [ChannelGroup("a", (), rising, 0.1), ChannelGroup("b", (), rising.flip(0), 1.0)]
        limits = Limits(round_to, {group.name: 48 for group in groups})
        return Cut(None, groups, limits, [steps_of(group, limits) for group in groups], Blocks(block), 1.0, exact=True)

    return make


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [4, 16])
def test_every_way_meets_the_goal_within_the_limits_and_leaves_no_block_half_empty(cut, way, block):
    asked = cut(block)
    removed = asked.chosen(way, 1.0, 1.0)
    assert removed is not None
    assert asked.timing.ms(removed, 1.0) <= 1.0
    assert all(gone in steps for gone, steps in zip(removed, asked.steps, strict=True))
    assert all((WIDTH - gone) % block == 0 for gone in removed)


@pytest.mark.parametrize("way", WAYS)
def test_a_goal_out_of_reach_is_no_choice_by_any_way(cut, way):
    assert cut().chosen(way, 1.0, 0.4) is None


def test_the_fastest_is_there_whatever_the_goal(cut):
    assert cut().chosen("fastest", 1.0, 0.4) == (48, 48)


def test_loss_spares_what_matters_and_evenness_does_not_look(cut):
    assert cut().chosen("loss per ms", 1.0, 1.0) == (48, 16)
    assert cut().chosen("evenly per ms", 1.0, 1.0) == (32, 32)


@pytest.mark.parametrize(("round_to", "multiple"), [(4, 16), (8, 16), (5, 20), (32, 32)])
def test_wide_blocks_are_multiples_of_what_was_asked_for_even_where_the_table_sees_none(cut, round_to, multiple):
    removed = cut(block=4, round_to=round_to).chosen("importance in wide blocks", 1.0, 1.3)
    assert removed is not None
    assert any(removed)
    assert all(gone == 0 or (WIDTH - gone) % multiple == 0 for gone in removed)
