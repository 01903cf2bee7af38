import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.corruptions.published import nearer, published

CIFAR = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))
IMAGENET = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))


def images(height, width):
    return np.zeros((1, 1, height, width), dtype=np.float32)


@pytest.mark.parametrize(("side", "rows"), [(8, CIFAR), (28, CIFAR), (32, CIFAR), (224, IMAGENET), (512, IMAGENET)])
def test_at_the_published_sizes_and_beyond_they_are_the_published_ones(side, rows):
    for severity in range(1, 6):
        assert published(images(side, side + 9), severity, CIFAR, IMAGENET) == rows[severity - 1]
        assert nearer(images(side + 9, side), severity, CIFAR, IMAGENET) == rows[severity - 1]


def test_half_way_on_a_logarithmic_scale_lies_the_geometric_mean():
    side = round(math.sqrt(32 * 224))  # 84.7
    factor, added = published(images(side, side), 5, CIFAR, IMAGENET)
    assert factor == pytest.approx(math.sqrt(2.5 * 20), rel=0.01)
    assert added == pytest.approx(0.2)
    assert nearer(images(84, 84), 5, CIFAR, IMAGENET) == CIFAR[4]
    assert nearer(images(85, 85), 5, CIFAR, IMAGENET) == IMAGENET[4]


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 400), severity=st.integers(1, 5))
def test_constants_lie_between_and_grow_with_the_side(side, severity):
    here, further = (published(images(s, s), severity, CIFAR, IMAGENET)[0] for s in (side, side + 1))
    assert CIFAR[severity - 1][0] <= here <= further + 1e-12
    assert further <= IMAGENET[severity - 1][0] + 1e-9
