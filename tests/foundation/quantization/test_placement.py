import pytest
from torch import nn
from torch.nn import functional as F

from kdpipe.foundation.normalize import Normalized
from kdpipe.foundation.quantization.engine import plan_of, prepare
from kdpipe.foundation.quantization.scheme import Scheme

EXPECTED = {
    # the input, each activation, the convolution before the addition; neither the addition itself (its ReLU) nor the logits
    "residual": ("normalize", "relu", "block_2", "block_3", "relu_1", "pool"),
    # pooling by maximum moves values only; the addition and the concatenation have grids of their own
    "functional": ("normalize", "relu", "left", "add", "relu_1", "cat"),
    # the shared convolution is two layers, each behind its own quantizer
    "twice": ("normalize", "relu", "relu_1", "relu_2", "mean"),
    # a convolution before an activation that is not merged has a grid of its own; before ReLU6 it has none
    "smooth": ("normalize", "layers_0", "layers_2", "layers_3", "layers_5", "layers_7", "layers_8", "layers_9", "layers_10"),
    "perceptron": ("normalize", "layers_3"),
}


class Block(nn.Module):
    """Whatever `forward_of` computes with two layers."""

    def __init__(self, forward_of):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.linear = nn.Linear(64, 2)
        self.forward_of = forward_of

    def forward(self, x):
        return self.forward_of(self, x)


def names(module, scheme=None):
    plan = plan_of(prepare(module.eval(), scheme or Scheme(), batch_norm="live"))
    return tuple(name.removeprefix("quantizers.").removeprefix("body_") for name in plan.quantizers)


def placed(forward_of, scheme=None):
    return names(Normalized(Block(forward_of), (0.0,), (1.0,), 3), scheme)


@pytest.mark.parametrize("kind", sorted(EXPECTED))
def test_quantizers_stand_where_the_runtimes_fuse(network, kind):
    assert names(network(kind)) == EXPECTED[kind]


def test_a_value_with_two_users_has_its_own_grid_even_before_an_activation():
    assert placed(lambda m, x: m.linear((lambda y: F.relu(y) + y)(m.a(x)).flatten(1))) == ("normalize", "a", "relu", "add")


IN_LAYER = Scheme(sums="in-layer")


def test_a_layer_that_takes_a_sum_in_has_no_quantizer_before_it(network):
    """The second convolution of the block; its shortcut is quantized behind the first activation."""
    assert names(network("residual"), IN_LAYER) == ("normalize", "relu", "block_2", "relu_1", "pool")


@pytest.mark.parametrize(
    ("forward_of", "expected"),
    [
        (lambda m, x: m.linear(F.relu(m.b(y) + y if (y := F.relu(m.a(x))) is not None else y).flatten(1)), ("normalize", "relu", "relu_1")),
        (lambda m, x: m.linear(F.relu(y + m.b(y) if (y := F.relu(m.a(x))) is not None else y).flatten(1)), ("normalize", "relu", "relu_1")),
        (lambda m, x: m.linear((y + m.b(y) if (y := m.a(x)) is not None else y).flatten(1)), ("normalize", "a", "add")),
        (lambda m, x: m.linear((m.a(x) * m.b(x)).flatten(1)), ("normalize", "a", "b", "mul")),
        (lambda m, x: m.linear(F.relu(m.a(x) + m.b(x)).flatten(1)), ("normalize", "b", "relu")),
    ],
    ids=["the layer first", "the shortcut first", "a layer that is the shortcut too", "a product is no sum", "two layers: the shortcut's is quantized"],
)
def test_only_a_layer_whose_result_goes_nowhere_else_is_taken_into_the_sum(forward_of, expected):
    assert placed(forward_of, IN_LAYER) == expected


def test_adding_a_number_is_not_an_addition_of_two_tensors():
    assert placed(lambda m, x: m.linear((F.relu(m.a(x)) + 1).flatten(1))) == ("normalize", "relu", "add")


def test_what_an_unknown_operation_gives_to_a_layer_is_quantized():
    """Twice: the convolution's own output, and what the sine makes of it."""
    assert placed(lambda m, x: m.linear(m.a(x).sin().flatten(1))) == ("normalize", "a", "sin")


def test_logits_stay_float_behind_a_softmax_and_a_scaling():
    assert placed(lambda m, x: F.softmax(m.linear(F.relu(m.a(x)).flatten(1)) * 3, dim=1)) == ("normalize", "relu")


def test_reading_a_shape_is_not_a_second_use():
    assert placed(lambda m, x: m.linear((lambda y: F.relu(y).view(y.shape[0], -1))(m.a(x)))) == ("normalize", "relu")


def test_without_normalisation_the_input_has_an_ordinary_quantizer():
    assert names(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)))[0] == "input_1"
