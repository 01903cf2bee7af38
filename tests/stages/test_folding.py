import pytest
import torch
from torch import nn

from kdpipe.stages.folding import foldable_pairs, folded


def settled(module, x):
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module.eval()


X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_network_with_its_norms_folded_gives_the_same_logits_and_input_gradients(tiny):
    module = settled(tiny().module, X)
    pairs = foldable_pairs(module, X)
    x = X.clone().requires_grad_()
    expected = module(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with folded(pairs):
        got = module(x)
        (folded_gradient,) = torch.autograd.grad(got.square().sum(), x)
    assert len(pairs) == 9
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert torch.allclose(folded_gradient, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def test_everything_is_put_back_also_after_an_error(tiny):
    module = settled(tiny().module, X)
    pairs = foldable_pairs(module, X)
    expected, names = module(X), [name for name, _ in module.named_parameters()]
    with pytest.raises(ArithmeticError), folded(pairs):
        raise ArithmeticError
    assert torch.equal(module(X), expected)
    assert [name for name, _ in module.named_parameters()] == names
    assert all("forward" not in layer.__dict__ and "weight" not in layer.__dict__ for layer in module.modules())


def test_folding_follows_the_weights_of_the_moment(tiny):
    module = settled(tiny().module, X)
    pairs = foldable_pairs(module, X)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    expected = module(X)
    with folded(pairs):
        assert torch.allclose(module(X), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


class Forked(nn.Module):
    """The convolution's output is used beside its BatchNorm as well."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.convolution(x)
        return (self.norm(x) + x).mean((2, 3))


class Twice(nn.Module):
    """One convolution, called before and without its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

    def forward(self, x):
        return self.convolution(self.norm(self.convolution(x))).mean((2, 3))


@pytest.mark.parametrize("kind", [Forked, Twice])
def test_what_cannot_be_folded_is_left_alone(kind):
    assert foldable_pairs(settled(kind(), X), X) == ()


def test_a_norm_of_batch_statistics_is_left_alone():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()).eval()
    assert foldable_pairs(module, X) == ()
