import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.ndimage import gaussian_filter

from kdpipe.foundation.randomness import stream
from kdpipe.robustness.corruption import COMMON, EXTRA, STANDARD
from kdpipe.tasks.augment import Augmentation, Blur, Crop, Flip, Noise, blur, crop, flip, noise, overlaps
from kdpipe.tasks.augmentations.augmix import AugMix
from kdpipe.tasks.augmentations.cutout import Cutout
from kdpipe.tasks.augmentations.randaugment import RandAugment

ALL = [pytest.param(step, id=step.name) for step in (Flip(), Crop(), Noise(), Blur(), Cutout(), RandAugment(), AugMix())]


def images(shape=(6, 3, 8, 10), seed=0):
    return torch.rand(shape, generator=stream(seed, "images"))


@settings(max_examples=30, deadline=None)
@given(
    step=st.sampled_from([Flip(), Crop(), Crop(padding=3), Noise(std=0.7), Blur(), Blur(sigma=4), Cutout(), RandAugment(magnitude=30), AugMix()]),
    samples=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    seed=st.integers(0, 1000),
)
def test_shape_and_range_stay_and_equal_draws_give_equal_images(step, samples, channels, height, width, seed):
    x = images((samples, channels, height, width), seed)
    before = x.clone()

    varied, again = (step(x, stream(seed, "augment")) for _ in range(2))

    assert varied.shape == x.shape
    assert varied.dtype == torch.float32
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert torch.equal(varied, again)
    assert torch.equal(x, before)


@pytest.mark.parametrize("step", ALL)
def test_each_sample_is_varied_by_draws_of_its_own(step):
    x = images((1, 1, 8, 8)).repeat(40, 1, 1, 1)

    varied = step(x, stream(0, "augment"))

    assert len({tuple(sample.flatten().tolist()) for sample in varied}) > 1


@pytest.mark.parametrize("step", ALL)
def test_another_stream_gives_other_images(step):
    x = images((40, 1, 8, 8))

    assert not torch.equal(step(x, stream(0, "a")), step(x, stream(0, "b")))


def test_flip_mirrors_half_of_the_samples_left_to_right():
    x = images((2000, 1, 2, 3))

    varied = flip(x, stream(0, "augment"))

    mirrored = torch.tensor([torch.equal(one, other.flip(2)) for one, other in zip(varied, x, strict=True)])
    same = torch.tensor([torch.equal(one, other) for one, other in zip(varied, x, strict=True)])
    assert torch.logical_xor(mirrored, same).all()
    assert 0.45 < mirrored.float().mean() < 0.55  # 4.5 standard deviations of a fair coin


@settings(max_examples=20, deadline=None)
@given(padding=st.integers(1, 4), seed=st.integers(0, 1000))
def test_crop_is_a_window_of_the_image_with_its_edge_repeated(padding, seed):
    x = images((4, 2, 5, 6), seed)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2), mode="edge")

    varied = crop(x, padding, stream(seed, "augment")).numpy()

    for sample, own in zip(varied, padded, strict=True):
        windows = [own[:, top : top + 5, left : left + 6] for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
        assert any(np.array_equal(sample, window) for window in windows)


def test_crop_shifts_in_both_directions_and_not_further():
    x = torch.zeros(400, 1, 9, 9)
    x[:, 0, 4, 4] = 1

    centres = crop(x, 2, stream(0, "augment"))[:, 0].flatten(1).argmax(1)

    assert set((centres // 9).tolist()) == set((centres % 9).tolist()) == {2, 3, 4, 5, 6}


def test_crop_shifts_by_an_eighth_of_the_side_unless_told():
    x = torch.zeros(400, 1, 32, 40)
    x[:, 0, 16, 16] = 1

    rows = Crop()(x, stream(0, "augment"))[:, 0].flatten(1).argmax(1) // 40

    assert (rows.min().item(), rows.max().item()) == (12, 20)


def test_noise_is_as_strong_as_its_draw_says():
    x = torch.full((400, 1, 16, 16), 0.5)

    strengths = noise(x, 0.1, stream(0, "augment")).std((1, 2, 3))

    assert strengths.max() < 0.115  # 0.1, and the spread of a deviation estimated from 256 pixels
    assert strengths.min() < 0.01
    assert 0.045 < strengths.mean() < 0.055


def test_blur_is_a_gaussian_of_the_drawn_deviation():
    x = images((3, 1, 24, 24))
    drawn = torch.rand(3, generator=stream(0, "augment")) * 2.0

    blurred = blur(x, 2.0, stream(0, "augment"))

    for sample, own, sigma in zip(blurred, x, drawn.tolist(), strict=True):
        expected = gaussian_filter(own[0].numpy(), sigma, mode="nearest", radius=6)
        assert np.abs(sample[0].numpy() - expected).max() < 1e-4  # separable sums in float32


def test_entries_are_names_or_tables():
    entries = TypeAdapter(tuple[Augmentation, ...]).validate_python(["flip", {"name": "crop", "padding": 2}, {"name": "noise", "std": 0.05}])

    assert entries == (Flip(), Crop(padding=2), Noise(std=0.05))


@pytest.mark.parametrize(
    "entry",
    ["rotate", {"name": "crop", "pad": 2}, {"name": "noise", "std": 2.0}, {"name": "blur", "sigma": 0}, {"name": "crop", "padding": 0}],
    ids=["unknown", "misspelt key", "std too large", "sigma 0", "padding 0"],
)
def test_unknown_entries_and_values_out_of_range_are_refused(entry):
    with pytest.raises(ValidationError):
        TypeAdapter(Augmentation).validate_python(entry)


def test_overlaps_are_names_of_the_evaluation_and_follow_the_settings():
    plain = (Flip(), Crop(), Cutout(), RandAugment(), AugMix())
    assert [overlaps(step) for step in plain] == [()] * 5
    trained = [overlaps(step) for step in (Noise(), Blur(), RandAugment(overlapping=True), AugMix(overlapping=True))]
    assert all(trained)
    assert {name for names in trained for name in names} <= {*STANDARD, *COMMON, *EXTRA}
    assert {"gaussian-noise", "gaussian-noise-c"} <= set(trained[0])
    assert {"contrast-c", "saturate"} <= set(trained[2])
