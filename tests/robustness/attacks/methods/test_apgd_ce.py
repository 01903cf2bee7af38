import numpy as np
import torch

from kdpipe.robustness.attacks.method import Draws, margins, parse_attack


def test_a_longer_search_and_a_second_start_find_no_less(robust_net, unseen):
    x, labels = torch.from_numpy(unseen.images[:60]), torch.from_numpy(unseen.labels[:60])
    found = {}
    for name in ("apgd-ce-3", "apgd-ce-20", "apgd-ce-20x2"):
        x_adv = parse_attack(name, norm="linf", epsilon=0.15, at="here").craft(robust_net, x, labels, Draws(0, "test", np.arange(60)))
        found[name] = margins(robust_net(x_adv), labels)
    assert found["apgd-ce-20"].mean() > found["apgd-ce-3"].mean()
    assert (found["apgd-ce-20x2"] >= found["apgd-ce-20"]).all()


def test_the_standard_budget_is_a_hundred_steps():
    attack = parse_attack("apgd-ce", norm="linf", epsilon=0.1, at="here")
    assert (attack.steps, attack.restarts) == (100, 1)
