import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.attacks.ball import distances, l2_norms, per_sample, project, steepest


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["linf", "l2"]), st.floats(1e-3, 2), st.integers(0, 99))
def test_a_projected_point_is_in_the_ball_and_in_the_range_and_stays_where_it_is_when_projected_again(norm, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    x, far = torch.rand(4, 2, 3, generator=generator), 3 * torch.randn(4, 2, 3, generator=generator)
    before = far.clone()
    once = project(far, x, epsilon, norm)
    assert distances(once, x, norm).max() <= epsilon * (1 + 1e-5) + 1e-6
    assert once.min() >= 0
    assert once.max() <= 1
    torch.testing.assert_close(project(once, x, epsilon, norm), once)
    assert torch.equal(far, before)


@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_the_steepest_direction_has_length_one_however_small_the_gradient(size):
    gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * size
    gradient[2] = 0
    assert torch.equal(steepest(gradient, "linf"), gradient.sign())
    direction = steepest(gradient, "l2")
    torch.testing.assert_close(direction.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(direction[:2] * (gradient[:2] / size).norm(dim=1, keepdim=True), gradient[:2] / size)


def test_distances_by_hand():
    x, moved = torch.zeros(1, 2, 2), torch.tensor([[[0.0, 3.0], [-4.0, 0.0]]])
    assert distances(moved, x, "linf").tolist() == [4]
    assert distances(moved, x, "l2").tolist() == [5]
    assert (l2_norms(x) > 0).all()
    assert per_sample(torch.tensor([2.0]), x).shape == (1, 1, 1)
