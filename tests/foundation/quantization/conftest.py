"""Tiny networks with settled BatchNorm statistics, written in the ways in which users write them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.foundation.normalize import Normalized


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """Modules for activations, `+=` for the shortcut, as in the ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        )
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.block(x)
        y += x
        return self.linear(torch.flatten(self.pool(self.relu(y)), 1))


class Functional(nn.Module):
    """Functions and methods instead of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.right = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        both = torch.cat([torch.add(self.left(x), x), self.right(x).relu()], dim=1)
        return self.linear(both.view(both.size(0), -1))


class Twice(nn.Module):
    """One convolution and one BatchNorm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(2):
            x = F.relu(self.norm(self.shared(x)))
        return self.linear(x.mean((2, 3)))


class Smooth(nn.Module):
    """Activations that no runtime merges into a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU()),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish()),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6(), nn.Conv2d(4, 4, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class Perceptron(nn.Module):
    """Linear layers and one-dimensional BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


KINDS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "functional": Functional, "twice": Twice, "smooth": Smooth, "perceptron": Perceptron}


@pytest.fixture(scope="session")
def samples() -> Callable[..., Tensor]:
    """`samples(n)`: images (n, 1, 8, 8) in [0, 1]."""

    def make(n: int, seed: int = 0) -> Tensor:
        return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def network(samples: Callable[..., Tensor]) -> Callable[..., Normalized]:
    """`network("residual")`: normalised, with settled BatchNorm statistics, in evaluation mode."""

    def make(kind: str = "residual") -> Normalized:
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        module = Normalized(KINDS[kind](), (0.3,), (0.35,), 3).train()
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.uniform_(-0.2, 0.2)
            for seed in range(20):
                module(samples(32, seed))
        torch.random.set_rng_state(state)
        return module.eval()

    return make


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
