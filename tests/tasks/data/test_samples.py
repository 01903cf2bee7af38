import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data.samples import ArraySamples, RowsSplit, as_float32, chunks


def test_uint8_is_read_as_a_share_of_255_exactly():
    levels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)

    assert np.array_equal(as_float32(levels), levels.astype(np.float32) / np.float32(255))


def test_a_split_reads_its_own_rows():
    images = np.arange(6, dtype=np.uint8).repeat(4).reshape(6, 1, 2, 2)
    split = RowsSplit(ArraySamples(images), np.array([4, 1, 5]), np.array([0, 1, 0]))

    x = split.read(np.array([2, 0]))

    assert len(split) == 3
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert np.array_equal(np.rint(x[:, 0, 0, 0] * 255), [5, 4])


def test_reading_gives_a_copy():
    images = np.full((2, 1, 2, 2), 0.5, np.float32)
    split = RowsSplit(ArraySamples(images), np.arange(2), np.arange(2))

    split.read(np.arange(2))[:] = 0

    assert (images == 0.5).all()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "u1"])
def test_what_is_stored_is_little_endian(dtype):
    images = (np.arange(8).reshape(2, 1, 2, 2) % 2).astype(dtype)

    stored = b"".join(bytes(piece) for piece in ArraySamples(images).stored(np.array([1, 0])))

    assert stored == images[[1, 0]].astype(images.dtype.newbyteorder("<")).tobytes()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 20))
def test_chunks_are_the_whole_in_order(count, size):
    pieces = list(chunks(np.arange(count), size))

    assert np.concatenate([*pieces, np.array([], int)]).tolist() == list(range(count))
    assert all(0 < len(piece) <= size for piece in pieces)
