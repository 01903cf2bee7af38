import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from kdpipe.robustness.attacks.method import Draws, margins, parse_attack
from kdpipe.robustness.attacks.methods.fab_t import to_plane


def problem(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 7, generator=generator)
    normal = torch.randn(5, 7, generator=generator)
    normal[torch.rand(5, 7, generator=generator) < 0.2] = 0
    return x, normal, 2 * torch.randn(5, generator=generator)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["linf", "l2"]))
def test_the_plane_is_reached_within_the_range_or_come_as_close_to_as_can_be(seed, norm):
    x, normal, rise = problem(seed)
    offset = to_plane(x, normal, rise, norm)
    assert (x + offset).min() >= -1e-6
    assert (x + offset).max() <= 1 + 1e-6
    direction = normal * rise.sign()[:, None]
    most = torch.where(direction > 0, direction * (1 - x), -direction * x).sum(1)  # what the range allows
    reached = (normal * offset).sum(1)
    torch.testing.assert_close(reached, rise.sign() * torch.minimum(rise.abs(), most), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_shorter_way_exists_in_linf(seed):
    x, normal, rise = problem(seed)
    offset = to_plane(x, normal, rise, "linf")
    for own, slope, wanted, found in zip(x.numpy(), normal.numpy(), rise.numpy(), offset.numpy(), strict=True):
        # minimise t over (offset, t) with |offset| <= t, 0 <= own + offset <= 1, slope · offset = wanted
        eye, ones = np.eye(7), np.ones((7, 1))
        bounds = [(-value, 1 - value) for value in own] + [(0, None)]
        solved = linprog([0] * 7 + [1], np.block([[eye, -ones], [-eye, -ones]]), np.zeros(14), [[*slope, 0]], [wanted], bounds)
        if solved.status == 0:  # the plane can be reached
            assert np.abs(found).max() == pytest.approx(solved.fun, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_shortest_way_in_l2_points_along_the_normal_wherever_no_bound_is_met(seed):
    # the conditions of Karush, Kuhn and Tucker: one multiplier for all free values, and none that would go further at a bound
    x, normal, rise = problem(seed)
    offset = to_plane(x, normal, rise, "l2")
    reached = (normal * offset).sum(1)
    for own, slope, moved, wanted, got in zip(x, normal, offset, rise, reached, strict=True):
        if abs(wanted - got) > 1e-4:
            continue  # the plane lies outside of the range
        bounded = (own + moved < 1e-6) | (own + moved > 1 - 1e-6)
        free = ~bounded & (slope != 0)
        multipliers = (moved / slope)[free]
        torch.testing.assert_close(multipliers, multipliers[:1].expand_as(multipliers), atol=1e-5, rtol=1e-3)
        assert (moved[bounded].abs() <= (multipliers.abs().amax() if free.any() else torch.inf) * slope[bounded].abs() + 1e-5).all()
        assert (moved[slope == 0] == 0).all()


def test_no_way_is_needed_on_the_plane_and_none_is_found_without_a_normal():
    x, normal, _ = problem(0)
    for norm in ("linf", "l2"):
        assert (to_plane(x, normal, torch.zeros(5), norm) == 0).all()
        assert (to_plane(x, torch.zeros_like(normal), torch.ones(5), norm) == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_felled_lies_at_the_edge_of_the_ball(norm):
    weight = torch.tensor([[1.0, 2.0, -1.0], [0, 0, 0]])
    logits_of = lambda x: (x - 0.4) @ weight.T  # noqa: E731
    x, epsilon = torch.tensor([[0.45, 0.45, 0.4], [0.9, 0.9, 0.1]]), 0.1
    x_adv = parse_attack("fab-t", norm=norm, epsilon=epsilon, at="here").craft(logits_of, x, torch.zeros(2, dtype=torch.int64), Draws(0, "t", np.arange(2)))
    direction = -weight[0].sign() if norm == "linf" else -weight[0] / weight[0].norm()
    torch.testing.assert_close(x_adv[0], x[0] + epsilon * direction)
    assert torch.equal(x_adv[1], x[1])  # out of reach, nothing better was met within the ball
    assert margins(logits_of(x_adv), torch.zeros(2, dtype=torch.int64))[0] > 0


def test_a_second_restart_begins_at_random_and_finds_no_less(robust_net, unseen):
    x, labels = torch.from_numpy(unseen.images[:80]), torch.from_numpy(unseen.labels[:80])
    standing = {}
    for name in ("fab-t-8", "fab-t-8x2"):
        x_adv = parse_attack(name, norm="linf", epsilon=0.12, at="here").craft(robust_net, x, labels, Draws(0, "test", np.arange(80)))
        standing[name] = margins(robust_net(x_adv), labels) < 0
    assert (standing["fab-t-8x2"] <= standing["fab-t-8"]).all()
