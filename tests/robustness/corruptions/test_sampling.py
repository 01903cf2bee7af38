import math

import numpy as np
import pytest
from scipy.ndimage import map_coordinates, zoom

from kdpipe.robustness.corruptions.sampling import sampled, zoom_matrix


def clipped_zoom(line, factor):
    """Along one axis as published, by scipy."""
    side = len(line)
    kept = math.ceil(side / factor)
    first = (side - kept) // 2
    enlarged = zoom(line[first : first + kept], factor, order=1)
    trimmed = (len(enlarged) - side) // 2
    return enlarged[trimmed : trimmed + side]


@pytest.mark.parametrize("side", [8, 28, 32, 33, 224])
@pytest.mark.parametrize("factor", [1.0, 1.01, 1.06, 1.25, 1.75, 2.25, 4.5])
def test_a_zoomed_line_is_scipys(side, factor):
    line = np.random.default_rng(0).random(side)
    np.testing.assert_allclose(zoom_matrix(side, factor) @ line, clipped_zoom(line, factor), atol=1e-12)


@pytest.mark.parametrize(("repeat_edge", "scipys"), [(True, "reflect"), (False, "mirror")])
@pytest.mark.parametrize("shape", [(3, 2, 9, 12), (1, 1, 1, 5)], ids=str)
def test_sampling_is_scipys_map_coordinates(repeat_edge, scipys, shape):
    generator = np.random.default_rng(0)
    x = generator.random(shape, dtype=np.float32)
    samples, channels, height, width = shape
    rows = (np.arange(height)[:, None] + generator.normal(0, 6, (samples, height, width))).astype(np.float32)
    columns = (np.arange(width) + generator.normal(0, 6, (samples, height, width))).astype(np.float32)
    expected = [[map_coordinates(x[i, c].astype(np.float64), [rows[i], columns[i]], order=1, mode=scipys) for c in range(channels)] for i in range(samples)]
    np.testing.assert_allclose(sampled(x, rows, columns, repeat_edge=repeat_edge), expected, atol=1e-5)
