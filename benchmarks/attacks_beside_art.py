"""Our attacks beside those of the Adversarial Robustness Toolbox: time and result on the same samples, with equal steps.

    python benchmarks/attacks_beside_art.py [--n 200] [--rounds 3] [--epochs 4] [--json FILE]
    python benchmarks/attacks_beside_art.py --attacks autoattack --n 500 --rounds 1

ResNet-8 on the embedded digits (8x8, ten classes), trained by PGD-3 at epsilon 0.1, judged on `n` digits that it has not seen. One thread; seconds are
CPU time of the process, so that a busy machine disturbs neither; the two take turns, and the median of the rounds counts. The ensembles are not of equal
members: the Toolbox has neither the targeted DLR loss over nine classes nor FAB; its own has the untargeted DLR loss and DeepFool in their places. It gets one
restart of each, as ours, and goes on with the samples that still stand, as its AutoAttack does (whose own class needs one more package).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    DeepFool,
    MomentumIterativeMethod,
    ProjectedGradientDescentPyTorch,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kdpipe.foundation.networks import InputContract, NetworkSpec, build_network
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import Draws, margins, parse_attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.robustness.attacks.quiet import quiet

EPSILON = 0.1
TRAINED_ON = 1200


@dataclass(frozen=True)
class Pair:
    """One attack here and the same one there."""

    ours: str
    theirs: Callable[[PyTorchClassifier], object]


def pairs(batch: int) -> list[Pair]:
    same = {"norm": np.inf, "eps": EPSILON, "batch_size": batch, "verbose": False}
    return [
        Pair("pgd-20", lambda net: ProjectedGradientDescentPyTorch(net, eps_step=2.5 * EPSILON / 20, max_iter=20, num_random_init=1, **same)),
        Pair("mi-fgsm-10", lambda net: MomentumIterativeMethod(net, eps_step=EPSILON / 10, max_iter=10, decay=1.0, **same)),
        Pair(
            "apgd-ce-100",
            lambda net: AutoProjectedGradientDescent(net, eps_step=2 * EPSILON, max_iter=100, nb_random_init=1, loss_type="cross_entropy", **same),
        ),
        Pair("square-500", lambda net: SquareAttack(net, max_iter=500, **same)),
        Pair("autoattack", lambda net: _TheirEnsemble(net, batch)),
    ]


class _TheirEnsemble:
    """The members of the Toolbox's AutoAttack one after the other, each on what still stands; what leaves the ball does not count."""

    def __init__(self, net: PyTorchClassifier, batch: int) -> None:
        same = {"norm": np.inf, "eps": EPSILON, "batch_size": batch, "verbose": False}
        climbs = [
            AutoProjectedGradientDescent(net, eps_step=2 * EPSILON, max_iter=100, nb_random_init=1, loss_type=loss, **same)
            for loss in ("cross_entropy", "difference_logits_ratio")
        ]
        square = SquareAttack(net, max_iter=5000, p_init=0.8, nb_restarts=1, **same)
        self.net = net
        self.members = [*climbs, DeepFool(net, max_iter=100, epsilon=1e-3, nb_grads=10, batch_size=batch, verbose=False), square]

    def generate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The adversarial samples, (n, *shape), for the labels `y`."""
        found = x.copy()
        for member in self.members:
            standing = np.flatnonzero(self.net.predict(found).argmax(axis=1) == y)
            if len(standing) == 0:
                break
            crafted = member.generate(x[standing], y[standing])
            inside = np.abs(crafted - x[standing]).reshape(len(standing), -1).max(axis=1) <= EPSILON + 1e-6
            felled = inside & (self.net.predict(crafted).argmax(axis=1) != y[standing])
            found[standing[felled]] = crafted[felled]
        return found


def trained(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    spec = NetworkSpec(
        factory="kdpipe.tasks.networks.resnet:resnet",
        arguments={"in_channels": 1, "classes": 10, "image_size": 8, "depth": 8, "width": 1.0},
        contract=InputContract(shape=(1, 8, 8), labels=tuple("0123456789")),
        mean=(0.3,),
        std=(0.4,),
    )
    network = build_network(spec, torch.Generator().manual_seed(0)).module
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    generator, attack = torch.Generator().manual_seed(0), Attack(epsilon=EPSILON, steps=3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(50):
            wanted = labels[chosen]
            with quiet(network):
                x_adv = maximise(images[chosen], lambda moved, wanted=wanted: F.cross_entropy(network(moved), wanted, reduction="none"), attack, generator)
            network.train()
            optimizer.zero_grad()
            F.cross_entropy(network(x_adv), wanted).backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="samples to attack")
    parser.add_argument("--attacks", nargs="+", help="names as they are printed; default: all but the ensemble")
    parser.add_argument("--rounds", type=int, default=3, help="how often each attack runs")
    parser.add_argument("--epochs", type=int, default=4, help="of the training")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)  # theirs draws from the global generator
    digits = load_digits()
    images, labels = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32)), torch.from_numpy(digits.target.astype(np.int64))
    network = trained(images[:TRAINED_ON], labels[:TRAINED_ON], wanted.epochs)
    x, own = images[TRAINED_ON : TRAINED_ON + wanted.n], labels[TRAINED_ON : TRAINED_ON + wanted.n]
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu")
    figures: dict[str, object] = {"n": len(x), "epsilon": EPSILON, "clean_percent": round(100 * _standing(network, x, own), 1)}
    for pair in pairs(len(x)):
        if pair.ours not in (wanted.attacks or [one.ours for one in pairs(len(x))[:-1]]):
            continue
        method = parse_attack(pair.ours, norm="linf", epsilon=EPSILON, at="the benchmark")
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        standing = {}
        for _ in range(wanted.rounds):
            begun = time.process_time()
            with quiet(network):
                x_adv = method.craft(network, x, own, Draws(0, f"attack/{pair.ours}", np.arange(len(x))))
            seconds["ours"].append(time.process_time() - begun)
            standing["ours"] = _standing(network, x_adv, own)
            begun = time.process_time()
            crafted = pair.theirs(classifier).generate(x.numpy(), own.numpy())  # type: ignore[attr-defined]
            seconds["theirs"].append(time.process_time() - begun)
            standing["theirs"] = _standing(network, torch.from_numpy(crafted), own)
        medians = {who: statistics.median(values) for who, values in seconds.items()}
        figures[pair.ours] = {
            "ours_cpu_s": round(medians["ours"], 3),
            "theirs_cpu_s": round(medians["theirs"], 3),
            "theirs_to_ours": round(medians["theirs"] / medians["ours"], 2),
            "ours_stand_percent": round(100 * standing["ours"], 1),
            "theirs_stand_percent": round(100 * standing["theirs"], 1),
        }
        print(pair.ours, figures[pair.ours], flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def _standing(network: nn.Module, x_adv: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((margins(network(x_adv), labels) < 0).float().mean())


if __name__ == "__main__":
    main()
