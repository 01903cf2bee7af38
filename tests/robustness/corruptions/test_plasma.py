import numpy as np
import pytest

from kdpipe.robustness.corruptions.plasma import plasma


def generators(count=3):
    return [np.random.default_rng(seed) for seed in range(count)]


def diamond_square(draws, side, decay):
    """One map, point by point: each square's centre, then the middle of each edge, from its four neighbours around the torus."""
    field, used, step, wibble = np.zeros((side, side)), 0, side, 100.0
    while step >= 2:
        half = step // 2
        places = range(0, side, step)
        for row in places:
            for column in places:
                corners = sum(field[(row + dy) % side, (column + dx) % side] for dy in (0, step) for dx in (0, step))
                field[row + half, column + half] = corners / 4 + wibble**2 * draws[used]
                used += 1
        before = field.copy()
        for down, right in ((0, half), (half, 0)):
            for row in places:
                for column in places:
                    y, x = row + down, column + right
                    around = sum(before[(y + dy) % side, (x + dx) % side] for dy, dx in ((half, 0), (-half, 0), (0, half), (0, -half)))
                    field[y, x] = around / 4 + wibble**2 * draws[used]
                    used += 1
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


@pytest.mark.parametrize(("shape", "side"), [((8, 8), 8), ((16, 16), 16), ((11, 14), 16)], ids=str)
def test_it_is_the_algorithm_point_by_point(shape, side):
    clouds = plasma(generators(), shape, 1.75)
    for cloud, generator in zip(clouds, generators(), strict=True):
        draws = generator.random(side * side - 1, dtype=np.float32) * 2 - 1
        np.testing.assert_allclose(cloud[0], diamond_square(draws, side, 1.75)[: shape[0], : shape[1]], atol=1e-4)  # float32 over sums up to 1e4


def test_a_whole_map_spans_the_range_and_a_larger_decay_is_smoother():
    rough, smooth = (plasma(generators(20), (64, 64), decay) for decay in (1.4, 3.0))
    for clouds in (rough, smooth):
        assert clouds.shape == (20, 1, 64, 64)
        np.testing.assert_allclose(clouds.min(axis=(1, 2, 3)), 0, atol=1e-6)
        np.testing.assert_allclose(clouds.max(axis=(1, 2, 3)), 1, atol=1e-6)
    assert np.abs(np.diff(rough, axis=3)).mean() > 2 * np.abs(np.diff(smooth, axis=3)).mean()
