"""Too little light: the Poisson noise of counted photons."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((500.0,), (250.0,), (100.0,), (75.0,), (50.0,))  # photons for white
_IMAGENET = ((60.0,), (25.0,), (12.0,), (5.0,), (3.0,))


def shot_noise(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """Each value counted in photons, of which white has 500 to 50 (at 224 pixels 60 to 3); black stays black."""
    (photons,) = published(images, severity, _CIFAR, _IMAGENET)
    counts = [generator.poisson(image * photons) for image, generator in zip(images, draws.generators(), strict=True)]
    return (np.stack(counts) / photons).astype(np.float32)


plugin = shot_noise
