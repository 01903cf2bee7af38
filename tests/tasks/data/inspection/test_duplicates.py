"""Neighbours in cells are the neighbours there are; groups hang together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data.inspection.duplicates import exact_groups, joined, near_pairs


def counted(items, label, total):
    return items


def test_groups_are_the_positions_of_equal_digests():
    digests = np.array([[1, 2], [3, 4], [1, 2], [0, 9], [3, 4], [3, 4]], np.uint8)
    order = np.lexsort((digests[:, 1], digests[:, 0]))

    assert [sorted(group.tolist()) for group in exact_groups(digests, order)] == [[0, 2], [1, 4, 5]]
    assert exact_groups(digests, order[:0]) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
def test_joined_is_the_smallest_position_that_a_walk_reaches(pairs):
    family = joined(pairs, 20)

    reach = np.eye(20, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(5):
        reach = reach @ reach
    assert family.tolist() == [int(np.flatnonzero(row)[0]) for row in reach]


def test_a_brighter_noisier_copy_is_found_among_thousands():
    draws = np.random.default_rng(0)
    images = draws.integers(30, 200, (3000, 1, 12, 12)).astype(np.uint8)
    for k in range(20):
        images[1000 + k] = np.clip(images[k] * 1.1 + 5 + draws.normal(0, 2, images[k].shape), 0, 255)

    pairs = near_pairs(images, np.arange(3000, dtype=np.int64), counted)

    assert {(pair.first, pair.second) for pair in pairs} == {(k, 1000 + k) for k in range(20)}
    assert all(0.99 <= pair.correlation <= 1 for pair in pairs)


def test_where_all_images_are_alike_no_pair_stands_out():
    draws = np.random.default_rng(1)
    base = draws.integers(0, 200, (1, 10, 10))
    images = np.clip(base + draws.normal(0, 3, (400, 1, 10, 10)), 0, 255).astype(np.uint8)  # every pair correlates to 0.99 and more

    assert near_pairs(images, np.arange(400, dtype=np.int64), counted) == []


def test_a_handful_of_images_has_no_neighbourhood():
    assert near_pairs(np.zeros((4, 1, 8, 8), np.uint8), np.arange(4, dtype=np.int64), counted) == []
