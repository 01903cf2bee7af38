import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_images

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.plugins import names
from kdpipe.robustness.corruption import COMMON, EXTRA, SETS, SEVERITIES, STANDARD, Draws, corrupt, corruption_named

ALL = (*STANDARD, *COMMON, *EXTRA)
NOT_BY_DISTANCE = {"glass-blur", "frost", "elastic-transform", "saturate"}  # published as they are: see docs/decisions/corruption-severities.md


def images(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def digits():
    return (load_digits().images[:120, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def photographs():
    """Smooth colour images with structure at several scales."""
    grid = np.linspace(0, 1, 32)
    waves = [0.5 + 0.5 * np.sin(2 * np.pi * (k * grid[:, None] + c * grid[None, :])) for k in (1, 3) for c in (2, 5, 9)]
    return np.stack([np.stack(waves[:3]), np.stack(waves[3:])]).astype(np.float32)


@pytest.fixture(scope="module")
def scenes():
    """Crops of two real photographs, (12, 3, 224, 224): a temple and a flower."""
    pictures = [image.transpose(2, 0, 1).astype(np.float32) / 255 for image in load_sample_images().images]
    return np.stack([picture[:, top : top + 224, left : left + 224] for picture in pictures for top in (0, 200) for left in (0, 200, 400)])


def test_the_three_sets_are_every_file_and_have_nothing_in_common():
    assert sorted(ALL) == names("kdpipe.robustness.corruptions")
    assert [len(names_) for names_ in SETS.values()] == [6, 15, 4]


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(ALL),
    severity=st.sampled_from(SEVERITIES),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_any_image_keeps_its_shape_type_and_range_and_is_drawn_by_its_index(name, severity, channels, height, width, seed):
    x = images((4, channels, height, width), seed)
    before = x.copy()
    indices = np.array([7, 3, 11, 5])
    y = corrupt(name, x, severity, seed=seed, indices=indices)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert y.min() >= 0
    assert y.max() <= 1
    assert np.array_equal(x, before)
    alone = corrupt(name, x[2:3], severity, seed=seed, indices=indices[2:3])
    np.testing.assert_allclose(alone, y[2:3], atol=1e-6)  # matrix products of another batch size may round differently


@pytest.mark.parametrize("name", STANDARD)
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_every_severity_is_further_from_the_image_than_the_one_before(name, kind, request):
    x = request.getfixturevalue(kind)
    distances = [np.sqrt(((corrupt(name, x, severity, seed=0, indices=np.arange(len(x))) - x) ** 2).mean()) for severity in SEVERITIES]
    assert distances[0] > 0.005
    assert all(weaker < stronger for weaker, stronger in itertools.pairwise(distances))


@pytest.mark.parametrize("name", [name for name in (*COMMON, *EXTRA) if name not in NOT_BY_DISTANCE])
@pytest.mark.parametrize("kind", ["small", "large"])
def test_every_published_severity_is_further_from_the_image_than_the_one_before(name, kind, scenes):
    x = np.tile(scenes.reshape(12, 3, 32, 7, 32, 7).mean(axis=(3, 5)), (12, 1, 1, 1)) if kind == "small" else scenes[::4]
    draws = Draws(0, "the same for all severities", np.arange(len(x)))
    distances = [np.sqrt(((corruption_named(name)(x, severity, draws).clip(0, 1) - x) ** 2).mean()) for severity in SEVERITIES]
    assert distances[0] > 0.002
    # motion blur's 3 and 4 differ in an invisible tail; spatter's 3 is bright water, its 4 dark mud
    assert all(weaker < 1.05 * stronger for weaker, stronger in itertools.pairwise(distances))
    assert distances[4] > 1.1 * distances[0]


def test_noise_depends_on_seed_index_and_severity_alone(digits):
    x = np.full((3, 1, 8, 8), 0.5, dtype=np.float32)
    a, b = (corrupt("gaussian-noise", x, 1, seed=1, indices=np.array([4, 5, 4])) for _ in range(2))
    assert np.array_equal(a, b)
    assert np.array_equal(a[0], a[2])
    assert not np.array_equal(a[0], a[1])
    assert not np.array_equal(a, corrupt("gaussian-noise", x, 1, seed=2, indices=np.array([4, 5, 4])))
    stronger = corrupt("gaussian-noise", x, 2, seed=1, indices=np.array([4, 5, 4]))
    assert not np.allclose(2 * (a - x), stronger - x)  # not the same noise, twice as large


def test_an_unknown_corruption_is_answered_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        corrupt("gausian-blur", images((1, 1, 8, 8)), 1, seed=0, indices=np.arange(1))
    problem = caught.value.problems[0]
    assert problem.message == "unknown name 'gausian-blur'"
    assert problem.at == "[evaluate] corruptions"
    assert "did you mean 'gaussian-blur'" in problem.do


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_outside_1_to_5_is_refused(severity):
    with pytest.raises(ConfigError) as caught:
        corrupt("fog", images((1, 1, 8, 8)), severity, seed=0, indices=np.arange(1))
    problem = caught.value.problems[0]
    assert problem.message == f"severity {severity} is not one of 1 to 5"
    assert problem.at == "[evaluate] corruptions"
    assert problem.do == "1 is weak, 5 strong; the image itself is the clean figure"


def test_samples_that_are_no_images_are_refused():
    with pytest.raises(ConfigError) as caught:
        corrupt("contrast", images((5, 7)), 1, seed=0, indices=np.arange(5))
    problem = caught.value.problems[0]
    assert "(5, 7)" in problem.message
    assert problem.at == "[evaluate] corruptions"
    assert problem.do == "set corruptions = []"


@pytest.mark.parametrize("name", ALL)
def test_the_layout_in_memory_changes_nothing(name):
    pictures = images((2, 9, 11, 3))
    transposed = pictures.transpose(0, 3, 1, 2)
    contiguous = np.ascontiguousarray(transposed)
    a, b = (corrupt(name, x, 3, seed=0, indices=np.arange(2)) for x in (transposed, contiguous))
    np.testing.assert_allclose(a, b, atol=1e-6)  # matrix products may sum in another order
