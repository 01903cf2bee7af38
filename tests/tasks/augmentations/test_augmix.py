import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.randomness import stream
from kdpipe.tasks.augmentations import augmix as module
from kdpipe.tasks.augmentations.augmix import AugMix, augmix
from kdpipe.tasks.augmentations.operations import OVERLAPPING, OVERLAPS, PLAIN


def images(shape=(6, 3, 8, 10), seed=0):
    return torch.rand(shape, generator=stream(seed, "images"))


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    severity=st.floats(0.01, 10),
    chains=st.integers(1, 4),
    depth=st.none() | st.integers(1, 4),
    overlapping=st.booleans(),
)
def test_shape_and_range_stay_and_equal_draws_give_equal_images(samples, channels, height, width, severity, chains, depth, overlapping):
    x = images((samples, channels, height, width))
    before = x.clone()
    step = AugMix(severity=severity, width=chains, depth=depth, overlapping=overlapping)
    varied, again = (step(x, stream(0, "augment")) for _ in range(2))
    assert varied.shape == x.shape
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert torch.equal(varied, again)
    assert torch.equal(x, before)


def test_the_memory_format_stays():
    x = images().contiguous(memory_format=torch.channels_last)
    assert augmix(x, stream(0, "augment")).is_contiguous(memory_format=torch.channels_last)


def test_it_is_the_mixture_of_the_image_and_its_chains(monkeypatch):
    """With operations that paint the image in one tone each, a sample is linear in the weights, which can be read off."""
    tones = [0.2, 0.4, 0.8]
    painted = {str(tone): (lambda x, level, tone=tone: torch.full_like(x, tone)) for tone in tones}
    monkeypatch.setattr(module, "PLAIN", painted)
    x = torch.zeros(400, 1, 2, 2)
    value = augmix(x, stream(0, "augment"))[:, 0, 0, 0]
    draws = stream(0, "augment")
    weights = torch.empty(400, 3).exponential_(generator=draws)
    weights = weights / weights.sum(1, keepdim=True)
    share = torch.rand(400, generator=draws)
    lengths = torch.randint(1, 4, (1200,), generator=draws)
    chosen = torch.randint(3, (3, 1200), generator=draws)
    last = chosen[lengths - 1, torch.arange(1200)].reshape(400, 3)  # what a chain ends with covers what was before
    torch.testing.assert_close(value, share * (weights * torch.tensor(tones)[last]).sum(1))
    assert weights.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)  # standard error 0.012
    assert np.bincount(lengths.numpy())[1:].tolist() == pytest.approx([400] * 3, abs=60)  # four standard deviations


def test_a_sample_is_varied_by_draws_of_its_own():
    x = images((1, 3, 8, 8)).repeat(40, 1, 1, 1)
    varied = augmix(x, stream(0, "augment"))
    assert len({tuple(sample.flatten().tolist()) for sample in varied}) == 40


def test_a_higher_severity_and_more_depth_move_images_further():
    x = images((200, 3, 16, 16))
    distance = [
        (augmix(x, stream(0, "augment"), severity=severity, depth=depth) - x).abs().mean().item() for severity, depth in ((1, 1), (3, 1), (9, 1), (9, 3))
    ]
    assert distance == sorted(distance)


def test_operations_that_resemble_the_corruptions_are_left_out_unless_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "vary", lambda x, operations, chosen, levels: (seen.append(operations), x)[1])
    augmix(images(), stream(0, "augment"))
    augmix(images(), stream(0, "augment"), overlapping=True)
    assert not set(seen[0]) & set(OVERLAPPING.values())
    assert seen[-1] == (*PLAIN.values(), *OVERLAPPING.values())
    assert AugMix().overlaps == ()
    assert AugMix(overlapping=True).overlaps == OVERLAPS
