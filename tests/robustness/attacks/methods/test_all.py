"""What every attack in the folder has in common, and how they rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.plugins import names
from kdpipe.robustness.attacks.method import Draws, margins, parse_attack
from kdpipe.robustness.attacks.quiet import quiet

METHODS = names("kdpipe.robustness.attacks.methods")
LABELS = torch.arange(8) % 4
NAMES = {
    "apgd-ce": "apgd-ce-8x2",
    "apgd-cw": "apgd-cw-6",
    "apgd-t": "apgd-t-6",
    "autoattack": "autoattack-4",
    "cw": "cw-5x2",
    "fab-t": "fab-t-5x2",
    "fgsm": "fgsm",
    "hopskipjump": "hopskipjump-400",
    "mi-fgsm": "mi-fgsm-5",
    "pgd": "pgd-5x2",
    "rays": "rays-80",
    "square": "square-60",
}
TOLD_THE_CLASS_ALONE = ("hopskipjump", "rays")
"""They see errors and no margins."""


def draws(seed=0, indices=range(8)):
    return Draws(seed, "attack/test", np.array(indices))


@pytest.fixture
def images():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def linear(seed):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    return lambda x: (x - 0.5).flatten(1) @ weight.T


@settings(max_examples=30, deadline=None)
@given(method=st.sampled_from(METHODS), norm=st.sampled_from(["linf", "l2"]), epsilon=st.floats(1e-3, 1), seed=st.integers(0, 99), from_start=st.booleans())
def test_samples_stay_in_the_ball_and_in_the_value_range(method, norm, epsilon, seed, from_start):
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    attack = parse_attack(NAMES[method], norm=norm, epsilon=epsilon, at="here")
    start = (x + (epsilon if norm == "linf" else epsilon / 8) * torch.ones_like(x)).clamp(0, 1) if from_start else None
    x_adv = attack.craft(linear(seed), x, LABELS, draws(seed), start=start)
    offset = (x_adv - x).flatten(1)
    size = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert size.max() <= epsilon * (1 + 1e-4) + 1e-6  # float32 rounding of values near 1
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    if start is not None:
        before, after = margins(linear(seed)(start), LABELS), margins(linear(seed)(x_adv), LABELS)
        if method in TOLD_THE_CLASS_ALONE:
            assert ((after >= 0) | (before < 0)).all()
        else:
            assert (after >= before - 1e-5).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_sample_is_attacked_alike_whatever_its_batch(method, norm, images):
    attack = parse_attack(NAMES[method], norm=norm, epsilon=0.05 if norm == "linf" else 0.5, at="here")
    whole = attack.craft(linear(0), images, LABELS, draws())
    again = attack.craft(linear(0), images, LABELS, draws())
    reversed_ = attack.craft(linear(0), images.flip(0), LABELS.flip(0), draws(indices=range(7, -1, -1))).flip(0)
    halves = torch.cat([attack.craft(linear(0), images[part], LABELS[part], draws(indices=range(8)[part])) for part in (slice(0, 3), slice(3, 8))])
    assert torch.equal(whole, again)
    torch.testing.assert_close(reversed_, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(halves, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.15)])
def test_the_best_change_of_a_linear_model_is_reached_and_by_square_within_a_tenth(norm, epsilon):
    # two classes: the margin can rise by epsilon times the dual norm of the difference of the rows, and no further
    w = torch.randn(64, generator=torch.Generator().manual_seed(2))
    logits_of = lambda x: torch.stack([torch.zeros(len(x)), (x - 0.5).flatten(1) @ w + 5], dim=1)  # noqa: E731
    x, labels = torch.full((4, 1, 8, 8), 0.5), torch.ones(4, dtype=torch.int64)
    best = epsilon * (w.abs().sum() if norm == "linf" else w.norm())
    reached = {}
    for name in ("fgsm", "pgd-40", "cw-40", "mi-fgsm-40", "apgd-ce-40", "square-4000"):
        x_adv = parse_attack(name, norm=norm, epsilon=epsilon, at="here").craft(logits_of, x, labels, draws(indices=range(4)))
        reached[name] = (margins(logits_of(x_adv), labels) - margins(logits_of(x), labels)) / best
    assert reached["fgsm"].min() > 0.999
    assert reached["pgd-40"].min() > (0.999 if norm == "linf" else 0.97)  # l2: its small steps still turn along the sphere
    assert reached["cw-40"].min() > (0.999 if norm == "linf" else 0.97)
    assert reached["mi-fgsm-40"].min() > 0.999
    assert reached["apgd-ce-40"].min() > 0.999
    assert reached["square-4000"].min() > (0.9 if norm == "linf" else 0.6)  # l2: random search without gradients is far slower in 64 dimensions
    assert all(share.max() < 1.0001 for share in reached.values())


def test_pgd_finds_no_less_than_fgsm_and_more_restarts_no_less_than_one(tiny_cnn, images):
    found = {}
    with quiet(tiny_cnn):
        for name in ("fgsm", "pgd-20", "pgd-20x3"):
            x_adv = parse_attack(name, norm="linf", epsilon=0.1, at="here").craft(tiny_cnn, images, LABELS, draws())
            found[name] = margins(tiny_cnn(x_adv), LABELS)
    assert found["pgd-20"].mean() >= found["fgsm"].mean()
    assert (found["pgd-20x3"] >= found["pgd-20"]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_attacks_samples_that_are_no_images(norm):
    weight = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    logits_of = lambda x: x @ weight.T + torch.tensor([9.0, 0])  # noqa: E731
    x, labels = torch.full((3, 7), 0.5), torch.zeros(3, dtype=torch.int64)
    x_adv = parse_attack("square-50", norm=norm, epsilon=0.2, at="here").craft(logits_of, x, labels, draws(indices=range(3)))
    assert x_adv.shape == (3, 7)
    assert (margins(logits_of(x_adv), labels) > margins(logits_of(x), labels)).all()


@pytest.mark.parametrize(
    ("name", "norm"), [("apgd-t-40", "linf"), ("apgd-t-40", "l2"), ("fab-t-40", "linf"), ("fab-t-40", "l2"), ("autoattack-10", "linf"), ("autoattack-10", "l2")]
)
def test_targeted_attacks_fell_exactly_the_samples_of_a_linear_model_that_can_be_felled(name, norm):
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(6, 64, generator=generator), 0.25 + torch.rand(60, 1, 8, 8, generator=generator) / 2
    logits_of = lambda x: (x - 0.5).flatten(1) @ weight.T  # noqa: E731
    logits = logits_of(x)
    labels = logits.argmax(1)
    apart = weight[labels][:, None] - weight  # of each sample's row from each class's
    dual = apart.abs().sum(2) if norm == "linf" else apart.norm(dim=2)
    lead = logits.gather(1, labels[:, None]) - logits
    needed = (lead / dual).nan_to_num(nan=torch.inf).amin(1)  # the smallest epsilon that fells the sample; 0 / 0 at the label itself
    epsilon = float(needed.median())
    x_adv = parse_attack(name, norm=norm, epsilon=epsilon, at="here").craft(logits_of, x, labels, draws(indices=range(60)))
    clear = (needed / epsilon - 1).abs() > 0.002
    assert clear.sum() >= 55
    assert torch.equal((margins(logits_of(x_adv), labels) >= 0)[clear], (needed <= epsilon)[clear])


@pytest.mark.parametrize(
    ("name", "other", "norm", "epsilon"),
    [
        ("apgd-ce-20", "pgd-20", "linf", 0.15),
        ("apgd-ce-20", "pgd-20", "l2", 0.7),
        ("apgd-t-20", "pgd-20", "linf", 0.15),
        ("apgd-t-20", "pgd-20", "l2", 0.7),
        ("cw-20", "pgd-20", "linf", 0.15),
        ("cw-20", "pgd-20", "l2", 0.7),
        ("mi-fgsm-20", "fgsm", "linf", 0.15),
        ("fab-t-20", "pgd-20", "linf", 0.15),
        ("fab-t-20", "pgd-20", "l2", 0.7),
        ("autoattack-10", "pgd-10", "linf", 0.15),
    ],
)
def test_no_weaker_than_the_simpler_attack_beyond_sampling_error(robust_net, unseen, name, other, norm, epsilon):
    x, labels = torch.from_numpy(unseen.images[:200]), torch.from_numpy(unseen.labels[:200])
    stands = {}
    for attack in (name, other):
        x_adv = parse_attack(attack, norm=norm, epsilon=epsilon, at="here").craft(robust_net, x, labels, draws(indices=range(200)))
        stands[attack] = margins(robust_net(x_adv), labels) < 0
    assert 0.1 < stands[other].float().mean() < 0.95
    better, worse = int((stands[other] & ~stands[name]).sum()), int((stands[name] & ~stands[other]).sum())
    assert worse - better <= 1.96 * (worse + better) ** 0.5  # McNemar: the 95 % bound of the paired difference


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_cuts_its_graph_is_left_within_the_ball(method, images):
    attack = parse_attack(NAMES[method], norm="linf", epsilon=0.1, at="here")
    x_adv = attack.craft(lambda x: linear(0)(x).detach(), images, LABELS, draws())
    assert (x_adv - images).abs().max() <= 0.1 + 1e-6
    assert torch.isfinite(x_adv).all()
