"""Snowfall: smeared flakes over a whitened image."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, normal, separable
from kdpipe.robustness.corruptions.colour import grey
from kdpipe.robustness.corruptions.filters import motion
from kdpipe.robustness.corruptions.published import published
from kdpipe.robustness.corruptions.sampling import zoom_matrix

# of the flakes: mean and sigma of the noise they are cut from, its enlargement, threshold, radius and sigma of their smear; share of the image
# that is not whitened
_CIFAR = (
    (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
)
_IMAGENET = (
    (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
)
_FALL = (-135, -45)  # degrees


def snow(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images, whitened where they are dark, plus a layer of flakes and the same layer turned by 180 degrees."""
    mean, sigma, enlarged, threshold, radius, smear, kept = published(images, severity, _CIFAR, _IMAGENET)
    height, width = images.shape[2:]
    generators = list(draws.generators())
    flakes = np.float32(mean) + np.float32(sigma) * normal(generators, (1, height, width))
    flakes = separable(flakes, zoom_matrix(height, enlarged), zoom_matrix(width, enlarged))
    flakes = np.where(flakes < threshold, np.float32(0), np.minimum(flakes, 1))
    flakes = motion(flakes, round(radius), smear, (generator.uniform(*_FALL) for generator in generators))
    white = np.maximum(images, grey(images) * np.float32(1.5) + np.float32(0.5))
    result: Float32Array = np.float32(kept) * images + np.float32(1 - kept) * white + flakes + flakes[:, :, ::-1, ::-1]
    return result


plugin = snow
