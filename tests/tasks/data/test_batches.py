import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.randomness import stream
from kdpipe.tasks.data.batches import batches, number_of_batches
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit


def split(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(2, 2).repeat(2, 3)
    return RowsSplit(ArraySamples(images), np.arange(count), np.arange(count) % 3)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 20), shuffled=st.booleans())
def test_each_sample_comes_once_with_its_label_and_index(count, size, shuffled):
    own = split(count)

    found = list(batches(own, size, generator=stream(0, "order") if shuffled else None))

    indices = torch.cat([batch.indices for batch in found])
    assert sorted(indices.tolist()) == list(range(count))
    assert torch.equal(torch.cat([batch.labels for batch in found]), indices % 3)
    assert torch.equal((torch.cat([batch.x for batch in found])[:, 0, 0, 0] * 255).round().long(), indices)
    assert all(len(batch.x) == size for batch in found[:-1])
    assert len(found) == number_of_batches(own, size)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 20))
def test_drop_last_leaves_only_whole_batches_unless_there_is_none(count, size):
    found = list(batches(split(count), size, drop_last=True))

    assert len(found) == number_of_batches(split(count), size, drop_last=True) == max(1, count // size)
    assert all(len(batch.x) == min(size, count) for batch in found)


def test_the_order_without_a_generator_is_the_splits():
    assert torch.cat([batch.indices for batch in batches(split(10), 4)]).tolist() == list(range(10))


def test_equal_streams_shuffle_equally_and_other_streams_otherwise():
    def order(name):
        return torch.cat([batch.indices for batch in batches(split(50), 8, generator=stream(0, name))]).tolist()

    assert order("epoch-1") == order("epoch-1")
    assert order("epoch-1") != order("epoch-2")
    assert order("epoch-1") != list(range(50))


def test_a_limit_takes_only_these_indices():
    limit = np.array([7, 3, 9, 1, 0])

    found = list(batches(split(10), 2, limit=limit))

    assert torch.cat([batch.indices for batch in found]).tolist() == limit.tolist()
    assert number_of_batches(split(10), 2, limit=limit) == 3


def test_dtypes_are_those_that_a_loss_needs():
    [batch] = batches(split(5), 8)

    assert (batch.x.dtype, batch.labels.dtype, batch.indices.dtype) == (torch.float32, torch.int64, torch.int64)


def test_a_batch_is_read_when_it_is_asked_for():
    class Counted:
        labels = np.arange(12)
        reads = 0

        def __len__(self):
            return 12

        def read(self, indices):
            self.reads += 1
            return np.zeros((len(indices), 1, 2, 2), np.float32)

    own = Counted()
    coming = batches(own, 4)

    assert own.reads == 0
    next(coming)
    assert own.reads == 1
