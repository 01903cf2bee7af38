import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.stages.channel_choice import Limits, least_important
from kdpipe.stages.channel_groups import ChannelGroup


def group(name, scores):
    return ChannelGroup(name, (), torch.tensor(scores, dtype=torch.float32))


def removed(choice):
    return {group.name: channels for group, channels in choice}


def at_least(number):
    return lambda choice: sum(len(channels) for _, channels in choice) >= number


def test_the_least_important_go_over_all_groups():
    groups = [group("a", [0.1, 0.9, 0.2, 0.8]), group("b", [0.3, 0.4, 5.0, 6.0])]
    limits = Limits(1, {"a": 3, "b": 3})
    assert removed(least_important(groups, limits, at_least(3))) == {"a": [0, 2], "b": [0]}


def test_a_cut_group_keeps_a_multiple():
    groups = [group("a", [float(i) for i in range(10)])]
    assert removed(least_important(groups, Limits(4, {"a": 9}), at_least(1))) == {"a": [0, 1]}
    assert removed(least_important(groups, Limits(4, {"a": 9}), at_least(3))) == {"a": [0, 1, 2, 3, 4, 5]}


def test_no_group_loses_more_than_it_may():
    groups = [group("a", [0.1, 0.2, 0.3, 0.4]), group("b", [1.0, 2.0, 3.0, 4.0])]
    assert removed(least_important(groups, Limits(1, {"a": 2, "b": 3}), at_least(3))) == {"a": [0, 1], "b": [0]}
    assert least_important(groups, Limits(1, {"a": 2, "b": 3}), at_least(6)) is None


def test_what_turns_out_not_to_be_needed_is_given_back():
    # the first block of a alone does not do, one of b does: then a's is not needed
    groups = [group("a", [0.1, 0.2]), group("b", [0.5, 0.6, 0.7, 0.8])]
    choice = least_important(groups, Limits(2, {"a": 0, "b": 2}), lambda choice: len(removed(choice)["b"]) >= 2)
    assert removed(choice) == {"a": [], "b": [0, 1]}
    both = least_important([group("a", [0.1, 0.2]), group("b", [0.5, 0.6])], Limits(1, {"a": 1, "b": 1}), lambda choice: bool(removed(choice)["b"]))
    assert removed(both) == {"a": [], "b": [0]}


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_a_choice_is_enough_within_its_limits_and_no_block_could_stay(scores, round_to, wanted):
    groups = [group(str(number), values) for number, values in enumerate(scores)]
    limits = Limits(round_to, {each.name: each.width * 7 // 10 for each in groups})
    choice = least_important(groups, limits, at_least(wanted))
    if choice is None:
        assert sum(limits.removable(each, each.width) for each in groups) < wanted
        return
    counts = [len(channels) for _, channels in choice]
    assert sum(counts) >= wanted
    for each, count in zip(groups, counts, strict=True):
        assert count <= limits.most[each.name]
        assert count == 0 or (each.width - count) % round_to == 0
        if count:
            assert sum(counts) - count + limits.removable(each, count - 1) < wanted
