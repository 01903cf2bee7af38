import numpy as np
import torch
from torch import nn

from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.stages.search_attack import Replayed, SearchAttack, UnderAttack


class Pile:
    """32 samples of four values; the class is whether the first half outweighs the second."""

    def __init__(self):
        self.x = np.random.default_rng(0).random((32, 4)).astype(np.float32)
        self.labels = (self.x[:, :2].sum(1) > self.x[:, 2:].sum(1)).astype(np.int64)

    def __len__(self):
        return 32

    def read(self, indices):
        return self.x[indices]


class Masked(nn.Module):
    """The same answers without a gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.detach()) + 0 * x.sum()


def exact():
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, -1.0]]))
    return layer.requires_grad_(False)


def under_attack(floating, limit=50.0, epsilon=0.1):
    return UnderAttack(SearchAttack(norm="linf", epsilon=epsilon), Pile(), 32, limit, floating, seed=0)


def test_a_sample_counts_where_every_version_of_it_is_right():
    labels = np.array([0, 0, 0, 0], dtype=np.int64)
    first, second = (np.array(values, dtype=np.float32)[:, None] for values in ([0, 1, 0, 1], [0, 0, 1, 1]))
    stood = Replayed((first, second), labels).stood(lambda x: np.concatenate([1 - x, x], axis=1))
    assert (stood.value, stood.n) == (25.0, 4)
    assert 0 < stood.low < 25 < stood.high


def test_the_samples_lie_in_the_ball_and_are_the_same_each_time():
    attacked, again = under_attack(exact()), under_attack(exact())
    for one, other in zip(attacked.against(exact()).crafted, again.against(exact()).crafted, strict=True):
        assert np.array_equal(one, other)
        assert np.abs(one - Pile().x).max() <= 0.1 + 1e-6  # float32 rounding in [0, 1]
        assert one.min() >= 0
        assert one.max() <= 1


def test_what_a_linear_network_stands_is_known_by_hand():
    """A sample falls where its margin, twice the difference of the halves, is within what four values can move: 8 epsilon."""
    pile = Pile()
    margin = 2 * np.abs(pile.x[:, :2].sum(1) - pile.x[:, 2:].sum(1))
    inside = ((pile.x > 0.1) & (pile.x < 0.9)).all(axis=1)
    assert inside.any()
    expected = 100 * (margin > 0.8).mean()
    found = under_attack(exact()).floating.value
    assert found >= expected - 1e-6  # at the border of [0, 1] some moves are cut
    assert found < 100


def test_a_twin_that_hides_its_gradients_is_caught_by_the_samples_of_the_network_without_rounding():
    masked = Masked(exact())
    replayed = under_attack(exact()).against(masked)
    predictor = TorchPredictor(masked)
    alone = Replayed(replayed.crafted[1:], replayed.labels).stood(predictor)
    both = replayed.stood(predictor)
    assert alone.value > both.value + 10
    assert both.value <= under_attack(exact()).floating.value


def test_the_attack_is_told_with_its_ball():
    assert SearchAttack(norm="linf", epsilon=8 / 255).told == "PGD-20, linf, ε = 0.0314"
