import numpy as np
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
