"""Tiny networks, a small part of the handwritten digits, and a listener, for the tests of the stages."""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from kdpipe.foundation.networks import InputContract, Network, NetworkSpec, build_network, save_network
from kdpipe.foundation.randomness import stream
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.objectives.objective import Objective, Setting, Step, Teacher
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.tasks.data.splits import DataSplits, Split
from kdpipe.tasks.image_classification import ImageClassification


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Part:
    """The first `count` samples of a split."""

    whole: Split
    count: int

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.whole.labels[: self.count]

    def __len__(self) -> int:
        return self.count

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert len(indices) == 0 or indices.max() < self.count
        return self.whole.read(indices)


class Forbidden:
    """A split that may not be touched."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"the test split was asked for {name}")


class Stopping:
    """A progress that raises `Stopped` after so many batches, as a kill would come."""

    class Stopped(Exception):  # noqa: N818  # no error of anybody's
        pass

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, items: Iterable[Any], label: str, *, total: int | None = None, unit: str = "batch") -> Iterator[Any]:
        for item in items:
            if self.left == 0:
                raise self.Stopped
            self.left -= 1
            yield item

    def say(self, message: str) -> None:
        pass


@pytest.fixture
def stopping() -> type[Stopping]:
    return Stopping


@dataclass
class Listener:
    """A progress that keeps what it was told."""

    said: list[str] = field(default_factory=list)

    def __call__(self, items: Iterable[Any], label: str, *, total: int | None = None, unit: str = "batch") -> Iterable[Any]:
        return items

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    """200 training and 100 validation digits; the test split may not be touched."""
    data = ImageClassification(data="digits").load(tmp_path_factory.mktemp("digits"), seed=0)
    return replace(data, train=Part(data.train, 200), validation=Part(data.validation, 100), test=Forbidden())


@dataclass(frozen=True)
class Images:
    """A split in memory."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self.images[indices]


@pytest.fixture(scope="session")
def four_digits() -> DataSplits:
    """The digits 0 to 3: 400 for training, 100 for validation, 220 for the test."""
    digits = load_digits(n_class=4)
    images, labels = (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
    splits = [Images(images[part], labels[part]) for part in (slice(0, 400), slice(400, 500), slice(500, 720))]
    return DataSplits("digits", ("0", "1", "2", "3"), (1, 8, 8), *splits, digest="d" * 64, mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="session")
def reader_of_four(four_digits: DataSplits) -> Network:
    """A plain CNN after a few epochs, with BatchNorm; about 95 % of the four digits right."""
    torch.set_num_threads(1)
    spec = NetworkSpec(
        factory="kdpipe.tasks.networks.cnn:cnn",
        arguments={"in_channels": 1, "classes": 4, "image_size": 8, "channels": [8, 16]},
        contract=InputContract(shape=(1, 8, 8), labels=four_digits.classes),
        mean=four_digits.mean,
        std=four_digits.std,
    )
    network = build_network(spec, torch.Generator().manual_seed(0))
    images, labels = torch.from_numpy(four_digits.train.images), torch.from_numpy(four_digits.train.labels)
    optimizer = torch.optim.Adam(network.module.parameters(), 0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for chosen in torch.randperm(400, generator=generator).split(50):
            optimizer.zero_grad()
            F.cross_entropy(network.module(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    network.module.eval()
    return network


@pytest.fixture(scope="session")
def context_in() -> Callable[[Path], Context]:
    """`context_in(folder)`: a stage's context there."""
    return lambda folder: Context(folder=folder, project=folder, seed=0, threads=1, progress=Listener())


@pytest.fixture(scope="session")
def taught(digits: DataSplits, context_in: Callable[[Path], Context], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`taught("resnet-8", {"width": 0.5}, begins="pruned", epochs=8)`: a network trained on the 200 digits from the weights of that random stream, once."""
    task = ImageClassification(data="digits", augment=())
    plain = parse_objective("plain", {}, at="test")
    made: dict[tuple[object, ...], Path] = {}

    def make(name: str, arguments: dict[str, Any], *, begins: str, epochs: int) -> Path:
        key = (name, str(arguments), begins, epochs)
        if key in made:
            return made[key]
        torch.set_num_threads(1)
        network = build_network(task.network_spec(name, arguments, digits, at="test"), stream(0, begins))
        config = TrainingConfig(epochs=epochs, batch_size=32)
        folder = tmp_path_factory.mktemp("taught")
        train(network, plain, None, Inputs({}, digits, task), config, context_in(folder / "work"), label="pruned")
        made[key] = save_network(network, folder / "network")
        return made[key]

    return make


@pytest.fixture
def still_task() -> ImageClassification:
    """A task without augmentation."""
    return ImageClassification(data="digits", augment=())


@pytest.fixture
def inputs(digits: DataSplits, still_task: ImageClassification) -> Inputs:
    return Inputs({}, digits, still_task)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def context(tmp_path: Path, listener: Listener) -> Context:
    return Context(folder=tmp_path, project=tmp_path, seed=0, threads=1, progress=listener)


def _blocks_device() -> Any:
    spec = importlib.util.spec_from_file_location("blocks_device", Path(__file__).with_name("blocks_device.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["blocks_device"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def blocks() -> Any:
    """A device whose kernels work in blocks: see `blocks_device.py`."""
    return _blocks_device().Board()


@pytest.fixture
def law() -> Callable[..., float]:
    """`law(pixels, kernel, inputs, outputs, depthwise=False)`: what the board takes for a layer, in ns."""
    law: Callable[..., float] = _blocks_device().layer_ns
    return law


@pytest.fixture
def tiny(digits: DataSplits, still_task: ImageClassification) -> Callable[..., Network]:
    """`tiny(seed=0, width=0.25, depth=8)`: a small residual network for the digits, fresh."""

    def make(seed: int = 0, width: float = 0.25, depth: int = 8) -> Network:
        spec = still_task.network_spec(f"resnet-{depth}", {"width": width}, digits, at="test")
        return build_network(spec, stream(seed, "tiny"))

    return make


@pytest.fixture
def step_of(tiny: Callable[..., Network], digits: DataSplits) -> Callable[..., Step]:
    """`step_of(objective, samples=8, …)`: a step on the first digits; the networks have settled BatchNorm statistics, the student is in training mode."""

    def make(objective: Objective, *, samples: int = 8, seed: int = 0, student: torch.nn.Module | None = None, **changed: Any) -> Step:
        x = torch.from_numpy(digits.train.read(np.arange(samples)))
        labels = torch.from_numpy(digits.train.labels[:samples])
        teacher = tiny(seed=1, width=0.5).module
        student = tiny(seed=0).module if student is None else student
        with torch.no_grad():
            for module in (student, teacher):
                module.train()
                for _ in range(10):
                    module(torch.from_numpy(digits.train.read(np.arange(64))))
        teacher.eval().requires_grad_(False)
        auxiliary = objective.auxiliary(Setting(student.eval(), (teacher,), x[:2], len(digits.train)))
        student.train()
        values: dict[str, Any] = {"x": x, "labels": labels, "indices": torch.arange(samples), "teachers": (Teacher(teacher),), "auxiliary": auxiliary}
        return Step(student=student, generator=torch.Generator().manual_seed(seed), **{**values, **changed})

    return make
