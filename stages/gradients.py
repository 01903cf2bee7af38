"""The gradient of an objective over a few training batches: what importance scores are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdpipe.foundation.networks import Network
from kdpipe.foundation.randomness import lent_to_torch, stream
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.stages.objectives.objective import Objective, Setting, Step, Teacher
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import batching
from kdpipe.tasks.data.batches import batches


def objective_gradients(
    network: Network, objective: Objective, teachers: Sequence[Network], inputs: Inputs, context: Context, batch_size: int, most_batches: int, *, label: str
) -> dict[str, Tensor]:
    """Parameter name to the gradient of the objective's loss, summed over `most_batches` unaugmented training batches, at the end of its schedule.

    The network stays in evaluation mode, so that BatchNorm is that of the deployed network; nothing in it changes. An
    attack runs inside as in training. Every draw is from streams named after `label`.
    """
    module, split = network.module.eval(), inputs.data.train
    size, drop_last = batching(len(split), batch_size)
    modules = tuple(teacher.module for teacher in teachers)
    example = torch.from_numpy(split.read(torch.arange(min(2, len(split))).numpy()))
    sums = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    with quiet(*modules), lent_to_torch(stream(context.seed, f"{label}/gradients/layers")):
        auxiliary = objective.auxiliary(Setting(module, modules, example, len(split)))
        attack = stream(context.seed, f"{label}/gradients/attack")
        order = batches(split, size, generator=stream(context.seed, f"{label}/gradients/order"), drop_last=drop_last)
        for batch, number in zip(order, range(most_batches), strict=False):
            step = Step(
                x=batch.x,
                labels=batch.labels,
                indices=batch.indices,
                student=module,
                generator=attack,
                teachers=tuple(map(Teacher, modules)),
                auxiliary=auxiliary,
                progress=1.0,
                epoch=number,  # what alternates in training by steps or by epochs does so here by batches
                number=number,
            )
            gradients = torch.autograd.grad(objective.loss(step).total, list(module.parameters()), allow_unused=True)
            for name, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient
    return sums
