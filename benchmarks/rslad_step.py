"""How fast one RSLAD training step is here against a plain restatement of the published loop, and that both give the same result.

    python benchmarks/rslad_step.py [--threads 2] [--rounds 7] [--json FILE]

A plain loop asks the teacher once each step and uses torch's default memory format; it is timed with weight gradients
computed in the attack (`loss.backward()`, the reference of the ratios) and with `autograd.grad` for the input alone. All ways take
the same starts and take turns, so that a busy machine disturbs them alike. PGD-10 within
8/255, ResNet-8 student, ResNet-20 teacher of double width, 64 images of 3x32x32.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.foundation.networks import InputContract, Network, NetworkSpec, build_network
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.folding import Pair, foldable_pairs
from kdpipe.stages.objectives.objective import Step, Teacher
from kdpipe.stages.objectives.rslad import Rslad

BATCH = 64
SHAPE = (3, 32, 32)
ATTACK = Attack(epsilon=8 / 255, steps=10, step_size=2 / 255)


def network(depth: int, width: float, seed: int) -> Network:
    labels = tuple("0123456789")
    spec = NetworkSpec(
        factory="kdpipe.tasks.networks.resnet:resnet",
        arguments={"in_channels": 3, "classes": 10, "image_size": 32, "depth": depth, "width": width},
        contract=InputContract(shape=SHAPE, labels=labels),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return build_network(spec, torch.Generator().manual_seed(seed))


def published_step(
    student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, generator: torch.Generator, *, weight_gradients: bool
) -> tuple[Tensor, Tensor]:
    """One step as published, with the KL averaged over the batch; x' and the loss."""
    with torch.no_grad():
        target = F.softmax(teacher(x), dim=1)
    student.eval()
    x_adv = (x + 0.001 * torch.randn(x.shape, generator=generator)).clamp(0, 1)  # clamped as ours, else the ways start apart
    for _ in range(ATTACK.steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.kl_div(F.log_softmax(student(x_adv), dim=1), target, reduction="batchmean")
        if weight_gradients:
            loss.backward()
            gradient = x_adv.grad
        else:
            (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + ATTACK.resolved_step_size() * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - ATTACK.epsilon), x + ATTACK.epsilon).clamp(0, 1)
    student.train()
    x_adv = x_adv.detach()
    optimizer.zero_grad()
    adversarial = F.kl_div(F.log_softmax(student(x_adv), dim=1), target, reduction="batchmean")
    clean = F.kl_div(F.log_softmax(student(x), dim=1), target, reduction="batchmean")
    loss = 5 / 6 * adversarial + 1 / 6 * clean
    loss.backward()
    optimizer.step()
    return x_adv, loss.detach()


class Seen(Rslad):
    """RSLAD that shows its last x'."""

    last: ClassVar[Tensor]

    def worst_case(self, step: Step, loss_per_sample: Callable[[Tensor], Tensor]) -> Tensor:
        """See `RobustObjective.worst_case`."""
        Seen.last = super().worst_case(step, loss_per_sample)
        return Seen.last


def our_step(
    student: nn.Module, teacher: Teacher, optimizer: torch.optim.Optimizer, x: Tensor, generator: torch.Generator, foldable: tuple[Pair, ...]
) -> tuple[Tensor, Tensor]:
    """One step as `kdpipe.stages.training` takes it; x' and the loss. A teacher with known logits is not asked."""
    step = Step(
        x=x.contiguous(memory_format=torch.channels_last),
        labels=torch.zeros(BATCH, dtype=torch.long),
        indices=torch.arange(BATCH),
        student=student.train(),
        generator=generator,
        teachers=(teacher,),
        augmented=teacher.known is None,
        foldable=foldable,
    )
    loss = Seen(attack=ATTACK).loss(step)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    optimizer.step()
    return Seen.last, loss.total.detach()


class Racer:
    """One way to take steps, with its own student."""

    def __init__(self, name: str, student: nn.Module, teacher: nn.Module, dtype: torch.dtype, x: Tensor) -> None:
        self.name, self.student, self.teacher = name, copy.deepcopy(student).to(dtype), copy.deepcopy(teacher).to(dtype).eval().requires_grad_(False)
        self.ours = name.startswith("kdpipe")
        self.x = x.to(dtype)
        if self.ours:
            self.student.to(memory_format=torch.channels_last)
            self.teacher.to(memory_format=torch.channels_last)
            self.foldable = foldable_pairs(self.student.eval(), self.x[:2])
            with torch.no_grad():
                logits = self.teacher(self.x)
            self.asked = Teacher(self.teacher, known=(lambda indices: logits[indices]) if "known" in name else None)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-4, fused=self.ours)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """x' and the loss of the step whose attack starts at seed `number`."""
        generator = torch.Generator().manual_seed(number)
        if self.ours:
            return our_step(self.student, self.asked, self.optimizer, self.x, generator, self.foldable)
        return published_step(self.student, self.teacher, self.optimizer, self.x, generator, weight_gradients="weight gradients" in self.name)


PUBLISHED = "published loop, weight gradients in the attack"
NAMES = (PUBLISHED, "published loop, input gradients only", "kdpipe, teacher asked each step", "kdpipe, teacher's logits known")


def racers(dtype: torch.dtype) -> list[Racer]:
    """All ways, from one student (its BatchNorm statistics settled on the data) and one teacher."""
    student, teacher = network(8, 1.0, seed=0).module, network(20, 2.0, seed=1).module
    x = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for module in (student, teacher):
            for _ in range(20):
                module.train()(x)
    return [Racer(name, student, teacher, dtype, x) for name in NAMES]


def equality(dtype: torch.dtype, steps: int) -> dict[str, dict[str, float]]:
    """How far each way is from the first one: after one step x' (share of values that differ, and by how much) and loss, after all the weights."""
    results: dict[str, dict[str, float]] = {}
    ways = racers(dtype)
    for number in range(steps):
        first, *others = [(way, *way.step(number)) for way in ways]
        for way, x_adv, loss in others if number == 0 else ():
            difference = (x_adv - first[1]).abs()
            results[way.name] = {
                "x_adv differing share": (difference > 1e-5).double().mean().item(),
                "x_adv mean difference": difference.double().mean().item(),
                "loss relative difference": abs(loss.item() / first[2].item() - 1),
            }
    reference = torch.cat([parameter.detach().flatten() for parameter in ways[0].student.parameters()])
    for way in ways[1:]:
        weights = torch.cat([parameter.detach().flatten() for parameter in way.student.parameters()])
        results[way.name][f"weights relative difference after {steps} steps"] = ((weights - reference).norm() / reference.norm()).item()
    return results


def race(rounds: int) -> dict[str, list[float]]:
    """Seconds per step by way, the ways taking turns."""
    ways = racers(torch.float32)
    for way in ways:
        way.step(0)
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            start = time.perf_counter_ns()
            way.step(number + 1)
            seconds[way.name].append((time.perf_counter_ns() - start) / 1e9)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each way that are timed")
    parser.add_argument("--steps", type=int, default=5, help="steps after which weights are compared")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = race(options.rounds)
    slowest = statistics.median(seconds[PUBLISHED])
    paired = {name: statistics.median(a / b for a, b in zip(seconds[PUBLISHED], times, strict=True)) for name, times in seconds.items()}
    figures = {
        "threads": options.threads,
        "rounds": options.rounds,
        "relative_speed": {name: slowest / statistics.median(times) for name, times in seconds.items()},
        "relative_speed_median_of_paired_ratios": paired,
        "against_the_first_in_float64": equality(torch.float64, options.steps),
        "against_the_first_in_float32": equality(torch.float32, options.steps),
    }
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
