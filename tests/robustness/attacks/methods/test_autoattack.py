import numpy as np
import pytest
import torch

from kdpipe.robustness.attacks.method import Draws, margins, parse_attack


def crafted(name, logits_of, x, labels, epsilon=0.15):
    draws = Draws(0, "attack/autoattack", np.arange(len(x)))
    return parse_attack(name, norm="linf", epsilon=epsilon, at="here").craft(logits_of, x, labels, draws)


def test_each_member_meets_only_what_the_ones_before_it_left(robust_net, unseen):
    x, labels = torch.from_numpy(unseen.images[:40]), torch.from_numpy(unseen.labels[:40])
    sizes = []

    def watched(moved):
        sizes.append(len(moved))
        return robust_net(moved)

    x_adv = crafted("autoattack-5", watched, x, labels)
    first = parse_attack("apgd-ce-5", norm="linf", epsilon=0.15, at="here")
    after_first = first.craft(robust_net, x, labels, Draws(0, "attack/autoattack/apgd-ce", np.arange(40)))
    left = int((margins(robust_net(after_first), labels) < 0).sum())
    assert 0 < left < 40
    assert sizes[:8] == [1, 40, 40, 40, 40, 40, 40, 40]  # the number of classes; five steps, their last point, what came of them
    assert sizes[8] == left
    assert max(sizes[8:]) == left
    fallen = margins(robust_net(after_first), labels) >= 0
    assert torch.equal(x_adv[fallen], after_first[fallen])


def test_where_gradients_are_hidden_square_still_finds(robust_net, unseen):
    x, labels = torch.from_numpy(unseen.images[:30]), torch.from_numpy(unseen.labels[:30])
    hidden = lambda moved: robust_net(moved).detach()  # noqa: E731
    standing = {name: (margins(robust_net(crafted(name, hidden, x, labels, 0.2)), labels) < 0).float().mean() for name in ("pgd-10", "autoattack-6")}
    assert standing["autoattack-6"] < standing["pgd-10"] - 0.2


def test_the_standard_budget():
    attack = parse_attack("autoattack", norm="linf", epsilon=8 / 255, at="here")
    assert {name: (member.steps, member.restarts) for name, member in attack.members().items()} == {
        "apgd-ce": (100, 1),
        "apgd-t": (100, 1),
        "fab-t": (100, 1),
        "square": (5000, 1),
    }


def two_or_three_classes(robust_net, classes):
    """The network's first classes alone: logits (n, classes)."""
    return lambda x: robust_net(x)[:, :classes]


@pytest.mark.parametrize("classes", [2, 3])
def test_with_two_or_three_classes_the_margin_stands_in_for_the_targeted_dlr_loss(robust_net, unseen, classes):
    own = np.flatnonzero(unseen.labels < classes)[:60]
    x, labels = torch.from_numpy(unseen.images[own]), torch.from_numpy(unseen.labels[own])
    logits_of = two_or_three_classes(robust_net, classes)
    attack = parse_attack("autoattack-10", norm="linf", epsilon=0.2, at="here")
    assert list(attack.members(classes)) == ["apgd-ce", "apgd-cw", "fab-t", "square"]
    whole = margins(logits_of(crafted("autoattack-10", logits_of, x, labels, 0.2)), labels) >= 0
    assert 0 < whole.sum() < 60
    for member in attack.members(classes).values():  # the whole is never less than a part
        draws = Draws(0, "attack/part", np.arange(60))
        assert (margins(logits_of(member.craft(logits_of, x, labels, draws)), labels) >= 0).sum() <= whole.sum()


def test_with_two_classes_the_best_change_of_a_linear_model_is_found():
    """Two classes, closed form: the margin rises by epsilon times the l1 norm of the difference of the rows, and no further."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 64, generator=generator)
    x = 0.3 + 0.4 * torch.rand(40, 1, 8, 8, generator=generator)
    logits_of = lambda moved: moved.flatten(1) @ weight.T  # noqa: E731
    labels = logits_of(x).argmax(1)
    reach = 0.05 * (weight[0] - weight[1]).abs().sum()
    x_adv = crafted("autoattack-10", logits_of, x, labels, 0.05)
    assert torch.equal(margins(logits_of(x_adv), labels) >= 0, margins(logits_of(x), labels) + reach >= 0)


@pytest.mark.parametrize(
    ("name", "classes", "note"),
    [
        ("autoattack", 4, None),
        ("autoattack", 2, "not the standard ensemble: apgd-cw in place of apgd-t, whose loss needs 4 classes and finds 2"),
        ("autoattack-20", 10, "not the standard ensemble: 20 steps in place of 100"),
        ("pgd-20", 2, None),
    ],
)
def test_what_is_not_the_standard_ensemble_says_so(name, classes, note):
    assert parse_attack(name, norm="linf", epsilon=0.1, at="here").note(classes) == note
