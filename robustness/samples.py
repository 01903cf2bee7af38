"""Which samples a model is asked: the same for every model of a build, so that any two can be compared sample by sample."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.randomness import numpy_stream

Int64Array = npt.NDArray[np.int64]


class Samples(Protocol):
    """A labelled pile that is read by index: a split of a data set, or anything like it."""

    @property
    def labels(self) -> Int64Array:
        """The class indices, (n,)."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Int64Array) -> Float32Array:
        """The samples at `indices`, (len(indices), *shape), float32."""
        ...


def stratified(labels: Int64Array, n: int, *, seed: int) -> Int64Array:
    """The indices of `n` samples (all where there are fewer), sorted, the classes in their proportions up to one sample each.

    Nested: of two draws with one seed the smaller lies in the larger.
    """
    return np.sort(_stratified_order(labels, seed)[:n])


def _stratified_order(labels: Int64Array, seed: int) -> Int64Array:
    """All indices in an order of which every beginning is stratified: the k-th of the m samples of a class stands at (k + 1/2) / m."""
    shuffled = numpy_stream(seed, "evaluate/samples").permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = shuffled[labels[shuffled] == label]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    order: Int64Array = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order
