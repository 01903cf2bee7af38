import numpy as np
import torch

from kdpipe.robustness.attacks.method import Draws, parse_attack


def test_a_saturated_model_is_felled_where_the_cross_entropy_has_no_gradient(robust_net, unseen):
    steep = lambda x: 1e5 * robust_net(x)  # noqa: E731
    x, labels = torch.from_numpy(unseen.images[:100]), torch.from_numpy(unseen.labels[:100])
    standing = {}
    for name in ("pgd-10", "cw-10"):
        x_adv = parse_attack(name, norm="linf", epsilon=0.2, at="here").craft(steep, x, labels, Draws(0, "test", np.arange(100)))
        standing[name] = (robust_net(x_adv).argmax(1) == labels).float().mean()
    assert standing["cw-10"] < standing["pgd-10"] - 0.1


def test_two_classes_are_enough():
    logits_of = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)  # noqa: E731
    x = torch.tensor([[0.6], [0.9]])
    x_adv = parse_attack("cw", norm="linf", epsilon=0.2, at="here").craft(logits_of, x, torch.zeros(2, dtype=torch.int64), Draws(0, "test", np.arange(2)))
    torch.testing.assert_close(x_adv, torch.tensor([[0.4], [0.7]]))
