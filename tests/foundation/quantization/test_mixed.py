import pytest
import torch

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.quantization.engine import calibrate_, float_layers_of, freeze, layer_names, plan_of, prepare, twin_of
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, InputQuantizer
from kdpipe.foundation.quantization.layers import FrozenFloatLayer, FrozenLayer
from kdpipe.foundation.quantization.mixed import named_layers
from kdpipe.foundation.quantization.scheme import QuantizationPlan, Scheme

RESIDUAL = ("body.stem.0", "body.block.0", "body.block.3", "body.linear")


def frozen(module, samples, *, float_layers=(), scheme=None):
    twin = prepare(module, scheme or Scheme(), batch_norm="live", float_layers=float_layers)
    calibrate_(twin, [samples(64)])
    return freeze(twin)


def quantized(twin):
    return [name for name, module in twin.named_modules() if isinstance(module, ActivationQuantizer | InputQuantizer)]


def test_layers_are_named_in_the_order_of_the_network_on_it_and_on_its_twin(network, samples):
    assert layer_names(network("residual")) == layer_names(frozen(network("residual"), samples)) == RESIDUAL
    assert layer_names(frozen(network("residual"), samples, float_layers=["block.*"])) == RESIDUAL


def test_without_float_layers_nothing_is_new(network, samples):
    plain, listed = (frozen(network("residual"), samples, float_layers=names) for names in ((), []))
    assert plan_of(plain) == plan_of(listed)
    assert plan_of(plain).float_layers is None
    assert all(torch.equal(one, two) for one, two in zip(plain.state_dict().values(), listed.state_dict().values(), strict=True))


def test_a_float_layer_takes_what_only_it_takes_unrounded(network, samples):
    """The first layer of the block shares its input with the shortcut; the second has its own."""
    every = quantized(frozen(network("residual"), samples))
    inner = quantized(frozen(network("residual"), samples, float_layers=["body.block.3"]))
    shared = quantized(frozen(network("residual"), samples, float_layers=["body.block.0"]))
    assert set(every) - set(inner) == {"quantizers.body_block_2"}
    assert shared == every


def test_with_every_layer_in_float_the_twin_is_the_network(network, samples):
    module = network("residual")
    twin = frozen(module, samples, float_layers=["*"])
    assert quantized(twin) == []
    x = samples(16, 4)
    torch.testing.assert_close(twin(x), module.eval()(x), rtol=1e-5, atol=1e-5)  # folding moves the last bits


@pytest.mark.parametrize("kind", ["residual", "functional", "twice", "smooth", "perceptron"])
@pytest.mark.parametrize("position", [0, -1], ids=["first", "last"])
def test_the_plan_rebuilds_a_mixed_twin(network, samples, kind, position):
    name = layer_names(network(kind))[position]
    made = frozen(network(kind), samples, float_layers=[name])
    plan = QuantizationPlan.model_validate_json(plan_of(made).model_dump_json())
    assert plan.float_layers == float_layers_of(made) == (name,)
    again = twin_of(network(kind), plan)
    again.load_state_dict(made.state_dict())
    x = samples(8, 4)
    assert torch.equal(again(x), made(x))


def test_a_layer_that_is_called_twice_is_float_both_times(network, samples):
    made = frozen(network("twice"), samples, float_layers=["shared"])
    assert sum(isinstance(module, FrozenFloatLayer) for module in made.modules()) == 2
    assert float_layers_of(made) == ("body.shared",)
    again = twin_of(network("twice"), plan_of(made))
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(samples(4, 4)), made(samples(4, 4)))


def test_a_plan_of_another_mixture_does_not_fit(network, samples):
    plan = plan_of(frozen(network("residual"), samples, float_layers=["block.3"]))
    with pytest.raises(VerificationError, match="quantizers do not stand where the plan says"):
        twin_of(network("residual"), plan.model_copy(update={"float_layers": None}))


def test_float_layers_are_trained_in_float_beside_rounded_ones(network, samples):
    twin = prepare(network("residual").train(), Scheme(weight_bits=2), batch_norm="live", float_layers=["stem.0"])
    calibrate_(twin, [samples(64)])
    twin(samples(16)).sum().backward()
    assert twin.get_parameter("body.stem.0.layer.weight").grad is not None
    made = freeze(twin)
    assert isinstance(made.get_submodule("body.block.0"), FrozenLayer)
    assert len(made.get_submodule("body.stem.0").weight.unique()) > len(made.get_submodule("body.block.0").weight.unique())


def test_names_and_patterns_with_and_without_the_prefix_mean_the_same():
    assert named_layers(RESIDUAL, ["block.*"]) == named_layers(RESIDUAL, ["body.block.3", "block.0"]) == ("body.block.0", "body.block.3")
    assert named_layers(RESIDUAL, []) == ()


def test_an_unknown_layer_is_answered_with_the_nearest_one():
    with pytest.raises(ConfigError) as raised:
        named_layers(RESIDUAL, ["linear", "blocks.0"])
    (problem,) = raised.value.problems
    assert problem.message == "the network has no convolution or linear layer 'blocks.0'"
    assert problem.at == "[qat] keep_float"
    assert problem.do == "did you mean 'block.0'? layers: stem.0, block.0, block.3, linear"
