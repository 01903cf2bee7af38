import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.quantization.engine import calibrate_, freeze, freeze_observers_, plan_of, prepare, twin_of
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer
from kdpipe.foundation.quantization.layers import FrozenLayer, LiveLayer
from kdpipe.foundation.quantization.scheme import QuantizationPlan, Scheme

FINE = Scheme(weight_bits=8)
SCHEMES = {
    "u8-7": Scheme(),
    "u8-8": FINE,
    "s8": Scheme(activation_signed=True, weight_bits=8),
    "s8-symmetric": Scheme(activation_signed=True, activation_symmetric=True, weight_bits=8),
    "per-tensor": Scheme(weight_bits=8, weight_granularity="per-tensor"),
    "u4-4": Scheme(activation_bits=4, weight_bits=4),
}


@pytest.fixture
def calibrated(network, samples):
    def make(kind="residual", scheme=FINE, batch_norm="live"):
        twin = prepare(network(kind), scheme, batch_norm=batch_norm)
        calibrate_(twin, [samples(128)])
        return twin

    return make


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_calibrated_twin_is_as_close_to_the_network_as_its_bits_allow(network, kind, scheme, samples):
    module = network(kind)
    twin = prepare(module, scheme, batch_norm="live")
    calibrate_(twin, [samples(128)])
    with torch.no_grad():
        expected, found = module(samples(64, 1)), twin(samples(64, 1))
    spread = float(expected.max() - expected.min())
    share = 0.25 if scheme.activation_bits == 4 else 0.03  # of the spread of the logits; the worst found was 0.20 and 0.024
    assert float((found - expected).abs().max()) <= share * spread


def test_preparing_and_freezing_leave_their_argument_alone(network, samples, kind):
    module = network(kind)
    before = copy.deepcopy(module.state_dict())
    twin = prepare(module, FINE, batch_norm="live")
    calibrate_(twin, [samples(32)])
    kept = copy.deepcopy(twin.state_dict())
    freeze(twin)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in twin.state_dict().items())


def test_the_frozen_twin_computes_what_the_live_one_does_in_evaluation(calibrated, kind, samples):
    """But for the bias, which is rounded to the accumulator's grid, and the integers at the edge that this moves: a few steps in the logits."""
    twin = calibrated(kind)
    frozen, x = freeze(twin), samples(64, 1)
    live = twin.eval()(x).detach()
    assert float((frozen(x) - live).abs().mean()) <= 0.0005 * float(live.max() - live.min())  # the worst found was 0.0001
    assert not any(isinstance(module, LiveLayer | nn.BatchNorm2d | nn.BatchNorm1d) for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_folding_before_training_gives_the_same_calibrated_network(calibrated, kind, samples):
    live, folded = (freeze(calibrated(kind, batch_norm=mode))(samples(64, 1)).detach() for mode in ("live", "folded"))
    assert torch.equal(live, folded)


def test_a_twin_is_rebuilt_from_plan_and_state_bit_for_bit(calibrated, network, kind, samples):
    for twin in (calibrated(kind).eval(), freeze(calibrated(kind))):
        rebuilt = twin_of(network(kind), plan_of(twin))
        rebuilt.load_state_dict(twin.state_dict())
        assert torch.equal(rebuilt.eval()(samples(16, 3)), twin(samples(16, 3)))


def test_the_plan_survives_json(calibrated):
    plan = plan_of(freeze(calibrated()))
    assert plan.batch_norm == "folded"
    assert QuantizationPlan.model_validate_json(plan.model_dump_json()) == plan


def test_a_plan_of_another_network_is_refused(calibrated, network):
    plan = plan_of(freeze(calibrated("residual")))
    with pytest.raises(VerificationError) as caught:
        twin_of(network("functional"), plan)
    (problem,) = caught.value.problems
    assert problem.message == "quantizers do not stand where the plan says: 'quantizers.relu' instead of 'quantizers.body_relu'"
    assert (problem.at, problem.do) == ("quantization plan", "build the qat stage again")


def train_(twin, samples, steps, start=0):
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    twin.train()
    for step in range(start, start + steps):
        x = samples(16, 100 + step)
        labels = (x.mean((1, 2, 3)) * 300).long() % 3
        optimizer.zero_grad()
        F.cross_entropy(twin(x), labels).backward()
        optimizer.step()


def test_training_resumed_from_the_state_is_exact(calibrated, network, samples):
    whole, first = calibrated(), calibrated()
    train_(whole, samples, 6)
    train_(first, samples, 3)
    second = prepare(network(), FINE, batch_norm="live")
    second.load_state_dict(first.state_dict())
    train_(second, samples, 3, start=3)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in second.state_dict().items())
    assert torch.equal(freeze(second)(samples(8)), freeze(whole)(samples(8)))


def test_frozen_observers_stay_while_weights_train_on(calibrated, samples):
    twin = calibrated()
    train_(twin, samples, 2)
    freeze_observers_(twin)
    before = copy.deepcopy(twin.state_dict())
    train_(twin, samples, 2)
    after = twin.state_dict()
    fixed = [name for name in after if name.startswith("quantizers.") or "running_" in name]
    assert all(torch.equal(after[name], before[name]) for name in fixed)
    assert not torch.equal(after["body.linear.layer.weight"], before["body.linear.layer.weight"])


def test_a_layer_called_twice_keeps_one_weight_in_training(calibrated, samples):
    twin = calibrated("twice")
    train_(twin, samples, 2)
    first, second = twin.get_submodule("body.shared"), twin.get_submodule("body.shared_call2")
    assert first.layer.weight is second.layer.weight
    frozen = freeze(twin)
    layers = [frozen.get_submodule(name) for name in ("body.shared", "body.shared_call2")]
    assert all(isinstance(layer, FrozenLayer) for layer in layers)
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].bias_scale, layers[1].bias_scale)  # their inputs have scales of their own


def test_gradients_reach_the_input_through_the_frozen_twin(calibrated, samples, network):
    """Close to the float network's: the attack finds the same directions on the twin."""
    x = samples(32, 7)
    gradients = []
    for module in (network(), freeze(calibrated())):
        x = x.detach().requires_grad_(True)
        F.cross_entropy(module(x), torch.zeros(32, dtype=torch.long)).backward()
        gradients.append(x.grad.flatten(1))
    assert float(F.cosine_similarity(*gradients).mean()) > 0.9


def test_each_bias_stands_on_the_grid_of_its_accumulator(calibrated):
    frozen = freeze(calibrated("functional"))
    scale = {name: module.scale for name, module in frozen.named_modules() if isinstance(module, ActivationQuantizer)}
    linear = frozen.get_submodule("body.linear")
    assert torch.equal(linear.bias_scale, scale["quantizers.cat"] * linear.weight_scale.flatten())
    codes = linear.bias.double() / linear.bias_scale.double()
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_a_network_without_layers_is_refused():
    with pytest.raises(ConfigError) as caught:
        prepare(nn.Sequential(nn.Flatten(), nn.Softmax(1)), FINE, batch_norm="live")
    (problem,) = caught.value.problems
    assert problem.message == "the network has no convolution and no linear layer to quantize"
    assert (problem.at, problem.do) == ("Sequential", "build them from torch.nn modules")


def test_layers_that_stay_float_are_told(caplog):
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 64))
            self.up = nn.ConvTranspose2d(1, 1, 1)
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(F.linear(self.up(x).flatten(1), self.weight))

    with caplog.at_level(logging.WARNING):
        twin = prepare(Free(), FINE, batch_norm="live")
    assert "these layers stay float, only torch.nn's Conv1d to Conv3d and Linear are quantized: up, linear" in caplog.text
    assert "quantizers.linear" in plan_of(twin).quantizers  # the layer behind it computes on integers all the same
