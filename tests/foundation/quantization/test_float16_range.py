import pytest
import torch

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.engine import prepare
from kdpipe.foundation.quantization.float16_range import require_float16_range
from kdpipe.foundation.quantization.scheme import Scheme

HALF = Scheme(kind="float16")


def twin_with(network, factor, **prepared):
    module = network("perceptron")
    with torch.no_grad():
        next(parameter for name, parameter in module.named_parameters() if name.endswith("weight")).mul_(factor)
    return prepare(module, HALF, batch_norm="folded", **prepared)


def test_what_float16_holds_is_accepted(network, samples):
    require_float16_range(twin_with(network, 1.0), [samples(8)])


def test_a_weight_that_it_cannot_hold_names_the_layer_and_the_way_out(network):
    with pytest.raises(ConfigError) as raised:
        require_float16_range(twin_with(network, 1e7), None)
    (problem,) = raised.value.problems
    assert problem.message.startswith("a weight of the layer 'body.")
    assert problem.message.endswith("float16 ends at 65,504")
    assert problem.at == "scheme float16"
    assert problem.do.startswith("keep the layer in float32: [qat] keep_float = ['body.")


def test_results_count_only_where_they_are_float16(network, samples):
    """Weights of up to 30,000: each fits, their sums do not."""
    largest = max(float(p.detach().abs().max()) for p in network("perceptron").parameters())
    twin = twin_with(network, 3e4 / largest)
    require_float16_range(twin, None)
    with pytest.raises(ConfigError, match="a result of the layer"):
        require_float16_range(twin, [samples(64)])


def test_layers_kept_in_float_may_be_as_large_as_they_like(network):
    require_float16_range(twin_with(network, 1e7, float_layers=["*"]), None)
