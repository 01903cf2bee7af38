import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.calibration import calibrate_
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer
from kdpipe.foundation.quantization.scheme import Scheme


@pytest.fixture
def quantizer():
    return nn.Sequential(ActivationQuantizer(Scheme()))


def spread():
    """10,000 values of a standard normal distribution, and one at 50."""
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    return torch.cat([values, torch.tensor([50.0])]).reshape(1, -1)


def test_minmax_takes_the_extremes_over_all_batches(quantizer):
    calibrate_(quantizer, [torch.tensor([[-1.0, 0.5]]), torch.tensor([[0.0, 3.0]])])
    assert (float(quantizer[0].low), float(quantizer[0].high)) == (-1.0, 3.0)
    assert float(quantizer[0].scale) == pytest.approx(4 / 255)
    assert int(quantizer[0].zero_point) == 64


def test_percentile_leaves_the_outlier_out(quantizer):
    calibrate_(quantizer, [spread()], "percentile", percentile=99.9)
    exact = torch.quantile(spread()[0].double(), torch.tensor([0.001, 0.999]).double())
    bin_width = (50 + 4.5) / 2048
    assert float(quantizer[0].low) == pytest.approx(float(exact[0]), abs=2 * bin_width)
    assert float(quantizer[0].high) == pytest.approx(float(exact[1]), abs=2 * bin_width)


def test_mse_rounds_better_than_the_extremes_do(quantizer):
    """Many values and one far away: a shorter range rounds all others more finely."""
    x = spread()[:, :-1]
    x = torch.cat([x, torch.full((1, 1), 6.0)], dim=1)
    errors = {}
    scheme = Scheme(activation_bits=4)
    for method in ("minmax", "mse"):
        twin = nn.Sequential(ActivationQuantizer(scheme))
        calibrate_(twin, [x], method)
        errors[method] = float((twin.eval()(x) - x).square().mean())
    assert errors["mse"] < 0.9 * errors["minmax"]


def test_a_tight_range_stays_as_tight_while_it_follows_the_training(quantizer):
    calibrate_(quantizer, [spread()], "percentile", percentile=99.9)
    share = float(quantizer[0].high) / 50
    quantizer.train()(torch.tensor([[-4.0, 100.0]]))
    assert float(quantizer[0].high) == pytest.approx(share * 50.5, rel=1e-5)


def test_a_constant_activation_gets_a_positive_scale(quantizer):
    for method in ("minmax", "percentile", "mse"):
        calibrate_(quantizer, [torch.zeros(2, 4)], method)
        assert float(quantizer[0].scale) > 0
        assert torch.equal(quantizer.eval()(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_modes_and_outputs_are_as_before(quantizer):
    quantizer.train()
    calibrate_(quantizer, iter([torch.tensor([[0.0, 1.0]])]), "mse")
    assert quantizer.training
    assert quantizer[0].training
    assert torch.equal(quantizer.eval()(torch.tensor([[0.501]])), torch.tensor([[128 / 255]]))  # no hook is left that lets values through


def test_calibration_without_samples_is_refused(quantizer):
    with pytest.raises(ConfigError) as caught:
        calibrate_(quantizer, [])
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == ("no samples to calibrate with", "calibration", "give at least one training sample")


def test_activations_that_are_not_finite_are_named(quantizer):
    with pytest.raises(ConfigError) as caught:
        calibrate_(quantizer, [torch.tensor([[1.0, float("nan")]])])
    (problem,) = caught.value.problems
    assert problem.message == "the activation at '0' is not finite in calibration"
    assert (problem.at, problem.do) == ("calibration", "check the weights that were given and the data")
