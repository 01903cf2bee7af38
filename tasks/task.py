"""What a task is to the rest of kdpipe: where data and networks come from, and how training samples are varied."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import JsonValue
from torch import Tensor

from kdpipe.foundation.networks import NetworkSpec
from kdpipe.tasks.data.splits import DataSplits


class Task(Protocol):
    """The `[task]` section, checked. A plug-in is a frozen pydantic model in `tasks/<kind>.py` whose fields are its keys."""

    @property
    def default_teacher(self) -> str:
        """The network's name where `[teacher]` names none."""
        ...

    @property
    def default_student(self) -> str:
        """The network's name where `[distill]` names none."""
        ...

    def load(self, project: Path, seed: int) -> DataSplits:
        """The data, checked: relative paths are relative to `project`; ConfigError says what is wrong with it."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """The JSON value of all settings that change a training (augmentation), without paths: data counts by its digest."""
        ...

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A training batch varied at random, same shape and value range; the argument is not changed."""
        ...

    def network_spec(self, name: str, arguments: Mapping[str, JsonValue], data: DataSplits, *, at: str) -> NetworkSpec:
        """The description of the network called `name` (`resnet-20`, or `package.module:factory`) for this data."""
        ...
