"""Tiny networks and data for the robustness tests: 8x8 images, four classes, trained in a second."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.robustness.attacks.quiet import quiet


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_cnn() -> nn.Module:
    """Two convolutions with BatchNorm and dropout, untrained, training mode, (n, 1, 8, 8) to (n, 4)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@dataclass(frozen=True)
class ArraySamples:
    """Samples in memory that count how many were read at most at once."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    reads: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        self.reads.append(len(indices))
        return self.images[indices]


@pytest.fixture(scope="session")
def four_digits() -> ArraySamples:
    """Scikit-learn's digits 0 to 3, 720 images."""
    digits = load_digits(n_class=4)
    return ArraySamples((digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64), [])


@pytest.fixture(scope="session")
def robust_net(four_digits: ArraySamples) -> nn.Module:
    """A small network trained by PGD at epsilon 0.15 on the first 360 of `four_digits`; evaluation mode."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
        )
    x, labels = torch.from_numpy(four_digits.images[:360]), torch.from_numpy(four_digits.labels[:360])
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    attack, generator = Attack(epsilon=0.15, steps=3), torch.Generator().manual_seed(0)
    for _ in range(15):
        for chosen in torch.randperm(360, generator=generator).split(60):
            with quiet(network):
                x_adv = maximise(x[chosen], lambda moved, y=labels[chosen]: F.cross_entropy(network(moved), y, reduction="none"), attack, generator)
            optimizer.zero_grad()
            F.cross_entropy(network(x_adv), labels[chosen]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def unseen(four_digits: ArraySamples) -> ArraySamples:
    """The 360 of `four_digits` that `robust_net` was not trained on."""
    return ArraySamples(four_digits.images[360:], four_digits.labels[360:], [])
