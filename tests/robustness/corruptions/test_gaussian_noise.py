import numpy as np
import pytest

from kdpipe.robustness.corruption import corrupt


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.05), (2, 0.1), (3, 0.15)])
def test_the_noise_has_its_standard_deviation_and_no_mean(severity, sigma):
    x = np.full((20, 1, 32, 32), 0.5, dtype=np.float32)
    noise = corrupt("gaussian-noise", x, severity, seed=0, indices=np.arange(20)) - x  # 20,480 draws: standard errors of 0.5 % and 0.7 %
    assert noise.std() == pytest.approx(sigma, rel=0.03)
    assert abs(noise.mean()) < 0.03 * sigma
