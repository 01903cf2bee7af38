"""Our attacks beside those of an independent implementation, the Adversarial Robustness Toolbox, on the same samples and budget."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.robustness.attacks.method import Draws, margins, parse_attack

pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed: pip install adversarial-robustness-toolbox")

from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    MomentumIterativeMethod,
    ProjectedGradientDescentPyTorch,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier

N = 360
NORMS = {"linf": np.inf, "l2": 2}
EPSILONS = {"linf": 0.15, "l2": 0.7}
_SAME = {"batch_size": 120, "verbose": False}


def pgd(classifier, norm, epsilon):
    return ProjectedGradientDescentPyTorch(classifier, norm=NORMS[norm], eps=epsilon, eps_step=2.5 * epsilon / 20, max_iter=20, num_random_init=1, **_SAME)


def momentum(classifier, norm, epsilon):
    return MomentumIterativeMethod(classifier, norm=NORMS[norm], eps=epsilon, eps_step=epsilon / 10, max_iter=10, decay=1.0, **_SAME)


def apgd(classifier, norm, epsilon, loss="cross_entropy"):
    return AutoProjectedGradientDescent(classifier, norm=NORMS[norm], eps=epsilon, eps_step=2 * epsilon, max_iter=30, nb_random_init=1, loss_type=loss, **_SAME)


def apgd_dlr(classifier, norm, epsilon):
    return apgd(classifier, norm, epsilon, "difference_logits_ratio")


def square(classifier, norm, epsilon):
    return SquareAttack(classifier, norm=NORMS[norm], eps=epsilon, max_iter=100, **_SAME)


CASES = [
    ("pgd-20", [pgd], True, "linf"),
    ("pgd-20", [pgd], True, "l2"),
    ("mi-fgsm-10", [momentum], True, "linf"),
    ("mi-fgsm-10", [momentum], True, "l2"),
    ("apgd-ce-30", [apgd], True, "linf"),
    ("apgd-ce-30", [apgd], True, "l2"),
    ("square-100", [square], True, "linf"),  # theirs divides 0 by 0 in l2 on 8x8 images (1.20.1)
    ("apgd-t-30", [apgd_dlr], False, "linf"),
    ("apgd-t-30", [apgd_dlr], False, "l2"),
    ("autoattack-10", [apgd, apgd_dlr, square], False, "linf"),
    ("autoattack-10", [apgd, apgd_dlr], False, "l2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "theirs", "alike", "norm"), CASES, ids=[f"{name}-{norm}" for name, _, _, norm in CASES])
def test_no_weaker_beyond_sampling_error(robust_net, unseen, name, theirs, alike, norm):
    """Theirs: the worst of all `theirs` for each sample. `alike`: the same algorithm, so that ours is no stronger either."""
    x, labels = torch.from_numpy(unseen.images[:N]), torch.from_numpy(unseen.labels[:N])
    ours = parse_attack(name, norm=norm, epsilon=EPSILONS[norm], at="here").craft(robust_net, x, labels, Draws(0, f"attack/{name}", np.arange(N)))
    network = copy.deepcopy(robust_net)
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=4, clip_values=(0, 1), device_type="cpu")
    state = np.random.get_state()  # theirs draws from the global generator
    np.random.seed(0)
    try:
        crafted = [make(classifier, norm, EPSILONS[norm]).generate(x.numpy(), unseen.labels[:N]) for make in theirs]
    finally:
        np.random.set_state(state)
    own = margins(robust_net(ours), labels) < 0
    other = torch.stack([margins(robust_net(torch.from_numpy(x_adv)), labels) < 0 for x_adv in crafted]).all(0)
    stronger, weaker = int((~own & other).sum()), int((own & ~other).sum())
    bound = 1.96 * (stronger + weaker) ** 0.5  # McNemar: the 95 % bound of the paired difference
    assert weaker - stronger <= bound
    if alike:
        assert stronger - weaker <= bound
