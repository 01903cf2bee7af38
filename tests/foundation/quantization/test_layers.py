import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.fake_quant import fake_quantize, weight_scale
from kdpipe.foundation.quantization.layers import FrozenLayer, LiveLayer, apply_layer, folded_layer, without_parameters
from kdpipe.foundation.quantization.scheme import Scheme

SCHEME = Scheme(weight_bits=4)
X = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
INPUT_SCALE = torch.tensor(1 / 255)


def rounded(weight, scheme=SCHEME):
    limit = 2 ** (scheme.weight_bits - 1) - 1
    return fake_quantize(weight, weight_scale(weight, scheme), 0, -limit, limit)


@pytest.fixture
def live():
    generator = torch.Generator().manual_seed(1)
    layer, norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
    with torch.no_grad():
        for values in (layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean):
            values.copy_(torch.randn(values.shape, generator=generator))
        norm.running_var.copy_(torch.rand(5, generator=generator) + 0.5)
    return LiveLayer(layer, norm, SCHEME)


@pytest.fixture
def factor(live):
    return live.norm.weight / torch.sqrt(live.norm.running_var + live.norm.eps)


def test_in_evaluation_it_computes_with_the_folded_rounded_weight(live, factor):
    weight = rounded(live.layer.weight * factor.reshape(-1, 1, 1, 1))
    bias = live.norm.bias + (live.layer.bias - live.norm.running_mean) * factor
    assert torch.allclose(live.eval()(X), F.conv2d(X, weight, bias, padding=1), atol=1e-5)


def test_in_training_it_normalises_with_the_batch_and_rounds_on_the_folded_grid(live, factor):
    shape = (-1, 1, 1, 1)
    weight = rounded(live.layer.weight * factor.reshape(shape)) / factor.reshape(shape)
    y = F.conv2d(X, weight, live.layer.bias, padding=1)
    expected = F.batch_norm(y, None, None, live.norm.weight, live.norm.bias, training=True)
    mean = live.norm.running_mean.clone()
    assert torch.allclose(live.train()(X), expected, atol=1e-5)
    assert not torch.equal(live.norm.running_mean, mean)


def test_with_frozen_statistics_training_computes_as_evaluation_and_learns_on(live):
    live.statistics_frozen.fill_(True)
    mean = live.norm.running_mean.clone()
    result = live.train()(X)
    assert torch.equal(result, live.eval()(X))
    assert torch.equal(live.norm.running_mean, mean)
    result.square().sum().backward()
    assert all(bool(value.grad.abs().sum() > 0) for value in live.parameters())


def test_gradients_reach_weight_and_batch_norm_in_training(live):
    live.train()(X).pow(3).sum().backward()
    assert all(bool(torch.isfinite(value.grad).all()) for value in live.parameters())
    assert all(bool(value.grad.abs().sum() > 0) for value in (live.layer.weight, live.norm.weight, live.norm.bias))


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_freezing_changes_nothing_but_the_rounding_of_the_bias(live, granularity):
    live.scheme = Scheme(weight_bits=4, weight_granularity=granularity)
    frozen = FrozenLayer(live, INPUT_SCALE).requires_grad_(False)
    half_step = float(frozen.bias_scale.max()) / 2
    assert float((frozen(X) - live.eval()(X).detach()).abs().max()) <= half_step + 1e-5
    assert len(frozen.weight_scale.unique()) == (5 if granularity == "per-channel" else 1)
    codes = frozen.weight / frozen.weight_scale
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert float(codes.abs().max()) == pytest.approx(7)


def test_a_channel_that_batch_norm_switched_off_gives_its_bias(live):
    with torch.no_grad():
        live.norm.weight[2] = 0
    assert bool(torch.isfinite(live.train()(X)).all())
    assert torch.allclose(FrozenLayer(live, INPUT_SCALE)(X)[:, 2], live.norm.bias[2].expand(16, 6, 6), atol=1e-5)


def test_a_large_bias_beside_tiny_weights_stays_within_int32(live):
    with torch.no_grad():
        live.layer.weight[1] *= 1e-12
        live.norm.bias[1] = 50.0
    frozen = FrozenLayer(live, INPUT_SCALE)
    codes = frozen.bias.double() / frozen.bias_scale.double()
    assert float(codes.abs().max()) <= 2**30
    assert torch.allclose(frozen(X)[:, 1], live.folded()[1][1], rtol=1e-5)


def test_without_a_quantized_input_the_bias_stays_float(live):
    frozen = FrozenLayer(live, None)
    assert torch.equal(frozen.bias, live.folded()[1])
    assert float(frozen.bias_scale.abs().max()) == 0


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_every_padding_mode_is_the_layers_own(mode):
    layer = nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode=mode)
    assert torch.allclose(apply_layer(without_parameters(layer), X, layer.weight, layer.bias), layer(X), atol=1e-6)


def test_a_padding_that_has_no_numbers_is_refused():
    layer = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")
    with pytest.raises(ConfigError) as caught:
        apply_layer(layer, X, layer.weight, layer.bias)
    (problem,) = caught.value.problems
    assert problem.message == "a convolution with padding 'same' and padding_mode 'reflect' cannot be quantized"
    assert problem.at == "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=same, padding_mode=reflect)"
    assert problem.do == "give the padding as numbers"


def test_a_folded_layer_computes_what_both_did(live):
    folded = folded_layer(live.layer, live.norm, SCHEME)
    assert torch.allclose(folded(X), live.norm.eval()(live.layer(X)), atol=1e-5)


def test_a_batch_norm_without_weights_is_folded_too():
    layer, norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)
    norm.running_var.fill_(4.0)
    assert torch.allclose(folded_layer(layer, norm, SCHEME)(X), norm.eval()(layer(X)), atol=1e-5)
