"""The attacks that are told the class alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.robustness.attacks.method import Draws, margins, parse_attack

CASES = [("rays", "linf", 0.15), ("hopskipjump", "linf", 0.15), ("rays", "l2", 0.9), ("hopskipjump", "l2", 0.9)]


def attacked(name, logits_of, x, labels, norm, epsilon, start=None, seed=0):
    attack = parse_attack(name, norm=norm, epsilon=epsilon, at="here")
    return attack.craft(logits_of, x, labels, Draws(seed, "attack/decision", np.arange(len(x))), start=start)


@pytest.fixture
def digits(unseen):
    return torch.from_numpy(unseen.images[:40]), torch.from_numpy(unseen.labels[:40])


@pytest.mark.parametrize(("name", "norm", "epsilon"), CASES)
def test_no_sample_is_asked_more_often_than_its_budget(robust_net, digits, name, norm, epsilon):
    x, labels = digits
    asked = 0

    def counted(moved):
        nonlocal asked
        asked += len(moved)
        return robust_net(moved)

    for sample in range(6):
        asked = 0
        attacked(f"{name}-90", counted, x[sample : sample + 1], labels[sample : sample + 1], norm, epsilon)
        assert 1 <= asked <= 90


@pytest.mark.parametrize(("name", "norm", "epsilon"), CASES)
def test_the_logits_do_not_matter_to_what_falls_the_classes_do(robust_net, digits, name, norm, epsilon):
    """Confidence is taken away: what is asked, and what falls, stays the same bit for bit."""
    x, labels = digits
    hard = lambda moved: nn.functional.one_hot(robust_net(moved).argmax(1), 4).float()  # noqa: E731
    felled = [margins(robust_net(attacked(f"{name}-300", model, x, labels, norm, epsilon)), labels) >= 0 for model in (robust_net, hard)]
    assert torch.equal(felled[0], felled[1])
    assert felled[0].sum() > (margins(robust_net(x), labels) >= 0).sum()


@pytest.mark.parametrize(("name", "norm", "epsilon"), CASES)
def test_it_begins_at_the_samples_that_are_given(robust_net, digits, name, norm, epsilon):
    """Where they fell the sample, no more is asked; where they nearly do, they lead the way."""
    x, labels = digits
    nearly = attacked("pgd-20", robust_net, x, labels, norm, 0.7 * epsilon)
    standing = margins(robust_net(nearly), labels) < 0
    given = attacked(f"{name}-60", robust_net, x, labels, norm, epsilon, start=nearly)
    alone = attacked(f"{name}-60", robust_net, x, labels, norm, epsilon)
    assert torch.equal(given[~standing], nearly[~standing])
    assert (margins(robust_net(given), labels) >= 0).sum() >= (margins(robust_net(alone), labels) >= 0).sum()


@pytest.mark.parametrize(("name", "share"), [("rays", 0.9), ("hopskipjump", 0.7)])
def test_of_a_linear_model_the_border_is_found_within_a_little_more_than_its_distance(name, share):
    """Closed form: a sample can be felled from |margin| / ||w||_1 on; those for which 1.5 times that lies within epsilon shall fall."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, generator=generator)
    x = 0.3 + 0.4 * torch.rand(60, 1, 8, 8, generator=generator)
    logits_of = lambda moved: torch.stack([torch.zeros(len(moved)), (moved - 0.5).flatten(1) @ weight], dim=1)  # noqa: E731
    labels = logits_of(x).argmax(1)
    needed = (logits_of(x)[:, 1].abs() / weight.abs().sum())[:, None].squeeze()
    epsilon = 0.05
    felled = margins(logits_of(attacked(f"{name}-2000", logits_of, x, labels, "linf", epsilon)), labels) >= 0
    assert not felled[needed > epsilon * 1.001].any()
    easy = needed * 1.5 <= epsilon
    assert easy.sum() > 20
    assert felled[easy].float().mean() >= share


@pytest.mark.parametrize("name", ["rays", "hopskipjump"])
def test_a_model_that_never_errs_is_left_alone(name):
    x, labels = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
    certain = lambda moved: torch.tensor([[1.0, 0.0]]).expand(len(moved), 2)  # noqa: E731
    x_adv = attacked(f"{name}-150", certain, x, labels, "linf", 0.1)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon", "name"), [("linf", 0.15, "rays"), ("linf", 0.15, "hopskipjump"), ("l2", 0.9, "hopskipjump")])
def test_no_weaker_than_the_toolboxs_hopskipjump_at_equal_queries(robust_net, unseen, norm, epsilon, name):
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed: pip install adversarial-robustness-toolbox")
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import PyTorchClassifier

    n = 40
    x, labels = torch.from_numpy(unseen.images[:n]), torch.from_numpy(unseen.labels[:n])
    asked = 0

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(robust_net)

        def forward(self, moved):
            nonlocal asked
            asked += len(moved)
            return self.network(moved.float())  # theirs asks in float64

    classifier = PyTorchClassifier(Counted(), nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=4, clip_values=(0, 1), device_type="cpu")
    theirs = HopSkipJump(classifier, norm=np.inf if norm == "linf" else 2, max_iter=4, max_eval=400, init_eval=100, init_size=100, verbose=False)
    state = np.random.get_state()  # theirs draws from the global generator
    np.random.seed(0)
    try:
        found = torch.from_numpy(theirs.generate(x.numpy(), unseen.labels[:n]))
    finally:
        np.random.set_state(state)
    offset = (found - x).flatten(1)
    distance = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    other = (margins(robust_net(found), labels) >= 0) & (distance <= epsilon) | (margins(robust_net(x), labels) >= 0)
    own = margins(robust_net(attacked(f"{name}-{asked // n}", robust_net, x, labels, norm, epsilon)), labels) >= 0
    stronger, weaker = int((own & ~other).sum()), int((~own & other).sum())
    assert weaker - stronger <= 1.96 * (stronger + weaker) ** 0.5  # McNemar: the 95 % bound of the paired difference
