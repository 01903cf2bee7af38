"""What a cut would cost in accuracy: a copy of the network, cut and trained for a moment, judged on validation.

Right after a cut accuracy says little: two cuts that are both near chance can be a point apart after one epoch, in either direction. How well one short
pass foretells the end: docs/decisions/latency-pruning.md. Source: the short-term fine-tuning of Yang et al. 2018 (arXiv:1804.03230), section 3.2.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kdpipe.foundation.networks import Network
from kdpipe.foundation.pruning import PruningPlan, replay_
from kdpipe.stages.channel_choice import Choice
from kdpipe.stages.channel_groups import plan_without
from kdpipe.stages.objectives.objective import Objective
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import CHECKPOINTS, train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.validation import chosen_accuracy
from kdpipe.tasks.data.splits import Float32Array, Int64Array, Split

_SAMPLES = 4096
"""of training, for one pass: 64 steps of 64"""


@dataclass(frozen=True)
class Trial:
    """A network that is to be cut, and how it is trained. `label`: of the step."""

    network: Network
    objective: Objective
    teachers: Sequence[Network]
    inputs: Inputs
    config: TrainingConfig
    context: Context
    label: str

    def cut(self, choice: Choice) -> Network:
        """A new network without these channels."""
        return cut(self.network, plan_without(choice, self.network.module))

    def judge(self, network: Network, name: str) -> float:
        """The validation accuracy that choosing an epoch goes by, after one pass over a part of the training split. `network` is trained.

        `name`: of its folder, for going on where it was stopped. All trials of a step draw the same samples in the same order: their networks alone differ.
        """
        data = replace(self.inputs.data, train=_Beginning(self.inputs.data.train, min(_SAMPLES, len(self.inputs.data.train))))
        config = self.config.model_copy(update={"epochs": 1, "patience": None, "ema_decay": None, "swa_start": None})
        folder = self.context.folder / CHECKPOINTS / f"trial {name}"
        context = replace(self.context, folder=folder, target_cache=None)  # cached targets are of whole splits
        history = train(network, self.objective, self.teachers, replace(self.inputs, data=data), config, context, label=f"{self.label}/trial")
        return chosen_accuracy(history.best.validation, history.select_by)


def cut(network: Network, plan: PruningPlan) -> Network:
    """A new network: `network` cut by `plan`, which is remembered in its description."""
    module = copy.deepcopy(network.module)
    replay_(module, plan)
    before = network.spec.pruning or PruningPlan()
    return Network(network.spec.model_copy(update={"pruning": before.then(plan)}), module)


@dataclass(frozen=True)
class _Beginning:
    """The first `count` samples of a split; splits are in random order."""

    whole: Split
    count: int

    @property
    def labels(self) -> Int64Array:
        return self.whole.labels[: self.count]

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Int64Array) -> Float32Array:
        assert not len(indices) or int(np.max(indices)) < self.count
        return self.whole.read(indices)
