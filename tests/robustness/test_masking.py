"""Broken defences are flagged by the checks that are made for them; an honest network is not flagged at all."""

import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.robustness.attacks.method import asked, parse_attack
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import craft
from kdpipe.robustness.evaluation import Questions, Subject, judge
from kdpipe.robustness.masking import checks_of_file, checks_of_network
from kdpipe.robustness.samples import stratified

EPSILON = 0.15
NOISE = "attacks are no weaker than random noise"
CLEAN = "accuracy under attack is not above clean accuracy"
ITERATIVE = "many steps are no weaker than one"
BLACK_BOX = "a black-box attack finds no more than the others"
HUGE = "accuracy falls to chance at a huge epsilon"
GRADIENT = "gradients reach the input"
TWIN = "the file answers as its twin under attack"
REPEAT = "equal questions get equal answers"


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Rounding(Wrapped):
    """Input squeezed to three grey levels: the gradient of rounding is zero."""

    def forward(self, x):
        return self.network((x * 2).round() / 2)


class Detached(Wrapped):
    """No gradient at all: the graph is cut."""

    def forward(self, x):
        return self.network(x.detach())


class Saturated(Wrapped):
    """Logits so large that float32 softmax is exactly 0 and 1."""

    def forward(self, x):
        return self.network(x) * 1e4


class Noisy(Wrapped):
    """Random noise on every question."""

    def forward(self, x):
        return self.network(x + 0.2 * torch.randn_like(x))


def checks(network, samples, *, methods=("fgsm", "pgd-10"), square="square-200", norm="linf", epsilon=EPSILON):
    chosen = stratified(samples.labels, 120, seed=0)
    questions = Questions(attacked=chosen, curve=chosen[:0], black_box=chosen, corrupted=chosen[:0], corruptions=(), batch_size=128, seed=0)
    predictor = TorchPredictor(network)
    with quiet(network):
        replays = []
        for name in (*methods, *([square] if square else [])):
            method = parse_attack(name, norm=norm, epsilon=epsilon, at="here")
            replays.append(craft(method, name, network, samples, chosen, crafted_on="itself", seed=0, batch_size=128))
        judgement = judge(predictor, samples, questions, Subject("student", "network", 0), replays=replays)
        return {check.name: check for check in checks_of_network(network, predictor, samples, questions, judgement, replays)}, judgement


def failed(found):
    return {name for name, check in found.items() if check.passed is False}


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", EPSILON), ("l2", 0.6)])
def test_an_honestly_trained_network_is_not_flagged(robust_net, unseen, norm, epsilon):
    found, judgement = checks(robust_net, unseen, norm=norm, epsilon=epsilon)
    assert all(check.passed for check in found.values()), found
    assert len(found) == 7
    assert judgement.scorecard.robust.value > 40  # there is robustness to be wrong about
    assert judgement.scorecard.clean.value > 90


@pytest.mark.parametrize(
    ("defence", "flagged"),
    [
        (Rounding, {NOISE, BLACK_BOX, HUGE, GRADIENT}),
        (Detached, {NOISE, BLACK_BOX, HUGE, GRADIENT}),
        (Saturated, {BLACK_BOX, HUGE, GRADIENT}),
        (Noisy, {REPEAT}),
    ],
    ids=["rounded", "detached", "saturated", "random"],
)
def test_a_broken_defence_is_flagged(robust_net, unseen, defence, flagged):
    torch.manual_seed(0)
    found, _ = checks(defence(robust_net), unseen)
    assert flagged <= failed(found), found


def test_a_model_that_attacks_make_better_is_flagged(robust_net, unseen):
    class Helped(Wrapped):
        """Right only where the image was touched."""

        def forward(self, x):
            touched = ((x * 16 - (x * 16).round()).abs() > 1e-4).flatten(1).any(1)
            logits = self.network(x)
            return torch.where(touched[:, None], logits, -logits)

    found, judgement = checks(Helped(robust_net), unseen)
    assert CLEAN in failed(found)
    assert judgement.scorecard.robust.value <= judgement.scorecard.clean.value  # and yet no figure of robustness exceeds the clean one


def test_steps_that_get_lost_are_flagged(robust_net, unseen):
    class OneStep(Wrapped):
        """A true gradient at the samples alone, whose values are multiples of 1/16; a reversed one everywhere else."""

        def forward(self, x):
            at_sample = ((x * 16 - (x * 16).round()).abs() < 1e-4).flatten(1).all(1).reshape(-1, 1, 1, 1)
            return self.network(torch.where(at_sample, x, 2 * x.detach() - x))

    found, _ = checks(OneStep(robust_net), unseen)
    assert ITERATIVE in failed(found)


def test_what_was_not_run_is_not_passed(robust_net, unseen):
    found, _ = checks(robust_net, unseen, methods=("pgd-3",), square=None)
    assert found[ITERATIVE].passed is None
    assert "needs a one-step attack (fgsm)" in found[ITERATIVE].detail
    assert found[BLACK_BOX].passed is None
    assert found[BLACK_BOX].detail == "no black-box attack was run"


def test_a_file_that_replays_do_not_fit_is_flagged(robust_net, unseen):
    """Adversarial samples of a network that has nothing to do with the file: the black box finds what they do not."""
    torch.manual_seed(1)
    stranger = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).requires_grad_(False)
    chosen = stratified(unseen.labels, 120, seed=0)
    questions = Questions(attacked=chosen, curve=chosen[:0], black_box=chosen, corrupted=chosen[:0], corruptions=(), batch_size=128, seed=0)
    predictor = TorchPredictor(robust_net)

    def found(source, twin):
        pgd = parse_attack("pgd-10", norm="linf", epsilon=EPSILON, at="here")
        replays = [craft(pgd, "pgd-10", source, unseen, chosen, crafted_on="twin", seed=0, batch_size=64)]
        square = parse_attack("square-200", norm="linf", epsilon=EPSILON, at="here")
        replays.append(craft(square, "square-200", asked(predictor), unseen, chosen, crafted_on="file", seed=0, batch_size=64, start=replays[0].x_adv))
        judgement = judge(predictor, unseen, questions, Subject("int8", "file", 0), replays=replays)
        return {check.name: check for check in checks_of_file(predictor, TorchPredictor(twin), unseen, questions, judgement, replays)}

    assert failed(found(stranger, robust_net)) == {NOISE, BLACK_BOX}
    assert failed(found(robust_net, stranger)) == {TWIN}
    assert failed(found(robust_net, robust_net)) == set()


def test_details_tell_numbers_and_n(robust_net, unseen):
    found, _ = checks(robust_net, unseen)
    assert all("n = 120" in check.detail for check in found.values())
    assert "at ε = 0.5, at most 25.0 % is expected" in found[HUGE].detail
    assert np.isfinite(float(found[REPEAT].detail.split()[5].rstrip(",")))


def scaled(factor):
    return lambda network: lambda x: network(x) * factor


def rounded(levels):
    return lambda network: lambda x: network((x * levels).round() / levels)


def noisy(sigma):
    return lambda network: lambda x: network(x + sigma * torch.randn_like(x))


BROKEN = {
    "logits times 30": scaled(30),
    "logits times 1e4": scaled(1e4),
    "logits that explode": scaled(1e30),
    "logits over 1e8": scaled(1e-8),
    "input in 3 grey levels": rounded(2),
    "input in 5 grey levels": rounded(4),
    "a little noise": noisy(0.01),
    "much noise": noisy(0.2),
    "graph cut": lambda network: lambda x: network(x.detach()),
    "gradient of zeros": lambda network: lambda x: network(x.detach() + 0 * (x - x.detach())),
    "gradient reversed": lambda network: lambda x: network(2 * x.detach() - x),
}


class Defended(Wrapped):
    def __init__(self, network, defence):
        super().__init__(network)
        self.defence = defence(network)

    def forward(self, x):
        return self.defence(x)


@pytest.mark.parametrize("defence", BROKEN)
def test_no_broken_defence_slips_through(robust_net, unseen, defence):
    torch.manual_seed(0)
    found, _ = checks(Defended(robust_net, BROKEN[defence]), unseen)
    assert failed(found), found


def test_a_linear_model_whose_optimum_is_known_is_not_flagged(unseen, four_digits):
    """Its gradient is the same everywhere: one step reaches the closed-form optimum, and nothing finds more."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        network[1].weight.copy_(0.1 * torch.randn(4, 64, generator=generator))
        network[1].bias.zero_()
    x, labels = torch.from_numpy(four_digits.images[:360]), torch.from_numpy(four_digits.labels[:360])
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    found, judgement = checks(network.eval().requires_grad_(False), unseen, epsilon=0.05)
    assert not failed(found), found
    assert 20 < judgement.scorecard.robust.value < judgement.scorecard.clean.value
