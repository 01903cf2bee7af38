import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.samples import stratified


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(1, 150), st.integers(0, 5))
def test_every_class_is_there_in_its_proportion_and_nothing_twice(labels, n, seed):
    labels = np.array(labels)
    chosen = stratified(labels, n, seed=seed)
    assert len(chosen) == min(n, len(labels)) == len(set(chosen.tolist()))
    assert (np.diff(chosen) > 0).all()
    for label in np.unique(labels):
        share = (labels == label).mean() * len(chosen)
        assert abs((labels[chosen] == label).sum() - share) <= 1.5 + 1e-9  # rounding in this class and ties with others


def test_a_smaller_draw_lies_in_a_larger_and_seeds_differ():
    labels = np.arange(300) % 7
    small, large = stratified(labels, 40, seed=1), stratified(labels, 200, seed=1)
    assert np.isin(small, large).all()
    assert np.array_equal(small, stratified(labels, 40, seed=1))
    assert not np.array_equal(small, stratified(labels, 40, seed=2))
