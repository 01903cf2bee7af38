"""What one training step of each objective costs here, and how fast `rslad`, `iad` and `adaad` are beside their authors' loops, with what result.

    python benchmarks/objective_steps.py [--threads 2] [--rounds 9] [--json FILE]

Costs are ratios to a step of plain cross-entropy, beside the theoretical number of passes (`docs/objectives.md`) for the τ that was
measured. The authors' loops are restated with everything that they compute and do not need (passes that are multiplied by 0, attacks in
training mode), in torch's default memory format and the C library's default allocator settings; ours run in a process of their own as
a build does, with freed memory kept. All take turns, so that a busy machine disturbs them alike. `the same loss` is the authors' method
without what kdpipe leaves out or does otherwise, so that results can be compared: x', loss, and weights after some steps.

PGD-10 within 8/255 in steps of 2/255, 64 images of 3x32x32; ResNet-8 student with two teachers, ResNet-20 of double width and of its
own, and a MobileNetV2 student with the latter.
"""

import argparse
import copy
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpipe.foundation.allocator import keep_freed_memory
from kdpipe.foundation.networks import InputContract, NetworkSpec, build_network
from kdpipe.foundation.plugins import names
from kdpipe.stages.folding import foldable_pairs
from kdpipe.stages.objectives.configured import PACKAGE, objective_class
from kdpipe.stages.objectives.objective import Objective, RobustObjective, Setting, Step, Teacher
from kdpipe.stages.weight_perturbation import perturbed

BATCH, SHAPE, CLASSES = 64, (3, 32, 32), 10
EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
ATTACK = {"epsilon": EPSILON, "steps": STEPS, "step_size": STEP_SIZE}
RATE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 2e-4}
RESNET_8, RESNET_20, WIDE_RESNET_20 = (("resnet", {"depth": depth, "width": width}) for depth, width in ((8, 1.0), (20, 1.0), (20, 2.0)))
MOBILENET = ("mobilenetv2", {"width": 1.0})
PAIRS = {  # student, teacher
    "teacher ResNet-20, double width": (RESNET_8, WIDE_RESNET_20),
    "teacher ResNet-20": (RESNET_8, RESNET_20),
    "student MobileNetV2, teacher ResNet-20": (MOBILENET, RESNET_20),
}
MANY_ROUNDS = "teacher ResNet-20"
AUTHORS = ("rslad", "iad", "adaad")

PASSES: dict[str, Callable[[float], float]] = {
    "plain": lambda tau: 3,
    "gradient-penalty": lambda tau: 7,
    "at": lambda tau: 2 * STEPS + 3,
    "trades": lambda tau: 2 * STEPS + 7,
    "mart": lambda tau: 2 * STEPS + 6,
    "ard": lambda tau: 2 * STEPS + 3 + tau,
    "rslad": lambda tau: 2 * STEPS + 6 + tau,
    "iad": lambda tau: 2 * STEPS + 6 + 2 * tau,
    "adaad": lambda tau: 2 * STEPS * (1 + tau) + 3 + tau,
    "igdm": lambda tau: 2 * STEPS + 9 + 3 * tau,
    "gce": lambda tau: 3,
    "sce": lambda tau: 3,
    "elr": lambda tau: 3,
    "co-teaching": lambda tau: 6,
    "augmix": lambda tau: 9 + tau,
    "augmix-plain": lambda tau: 9,
}
"""in forward passes of the student; 3 + τ where not named. `alternating` is timed on an attacked turn."""


Shape = tuple[str, dict[str, float]]
"""A network's factory in `tasks/networks` and the arguments that are its own."""


def network(shape: Shape, seed: int) -> nn.Module:
    """A network whose BatchNorm statistics have settled on the batch."""
    factory, arguments = shape
    spec = NetworkSpec(
        factory=f"kdpipe.tasks.networks.{factory}:{factory}",
        arguments={"in_channels": 3, "classes": CLASSES, "image_size": 32, **arguments},
        contract=InputContract(shape=SHAPE, labels=tuple(map(str, range(CLASSES)))),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    module = build_network(spec, torch.Generator().manual_seed(seed)).module.train()
    with torch.no_grad():
        for _ in range(10):
            module(batch()[0])
    return module


def batch() -> tuple[Tensor, Tensor]:
    """The samples and labels of every step."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(BATCH, *SHAPE, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)


@dataclass
class Result:
    """What a step came to."""

    x_adv: Tensor
    loss: Tensor


def kl_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """As the authors write it: (batch, classes), to be summed."""
    return F.kl_div(F.log_softmax(student, dim=1), F.softmax(teacher, dim=1), reduction="none")


def authors_attack(start: Tensor, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Their inner loops: the input's gradient alone, weights not frozen."""
    x_adv = start.clamp(0, 1)  # clamped as ours, else the ways start apart
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(x_adv), [x_adv])
        x_adv = x_adv.detach() + STEP_SIZE * torch.sign(gradient.detach())
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON), 0.0, 1.0)
    return x_adv.detach()


class Authors:
    """A loop as published (`faithful`), or its method without what kdpipe leaves out or does otherwise."""

    def __init__(self, name: str, student: nn.Module, teacher: nn.Module, dtype: torch.dtype, *, faithful: bool) -> None:
        self.take = {"rslad": self.rslad, "iad": self.iad, "adaad": self.adaad}[name]
        self.faithful = faithful
        self.student, self.teacher = copy.deepcopy(student).to(dtype), copy.deepcopy(teacher).to(dtype).eval()
        if name != "adaad":
            self.teacher.requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), nesterov=not faithful, **RATE)
        self.x, self.labels = batch()[0].to(dtype), batch()[1]

    def step(self, number: int) -> Result:
        """The step whose attack starts at seed `number`."""
        return self.take(torch.Generator().manual_seed(number))

    def rslad(self, generator: torch.Generator) -> Result:
        """zibojia/RSLAD: evaluation mode in the attack; then x' and the clean batch in training mode."""
        with torch.no_grad():
            target = self.teacher(self.x)
        self.student.eval()
        start = self.x + 0.001 * torch.randn(self.x.shape, generator=generator)
        x_adv = authors_attack(start, self.x, lambda x: kl_sum(self.student(x), target).sum())
        self.student.train()
        self.optimizer.zero_grad()
        adversarial, clean = self.student(x_adv), self.student(self.x)
        loss = (5 / 6 * kl_sum(adversarial, target) + 1 / 6 * kl_sum(clean, target)).sum() / BATCH
        return self._learned(x_adv, loss)

    def iad(self, generator: torch.Generator) -> Result:
        """ZFancy/IAD, IAD-I.py from its 60th epoch on: attack in training mode, two clean passes, a cross-entropy times 0, trust sample by sample in Python."""
        self.student.train(self.faithful)
        self.optimizer.zero_grad()
        target = self.teacher(self.x)
        start = self.x + (2 * torch.rand(self.x.shape, generator=generator) - 1) * EPSILON
        x_adv = authors_attack(start, self.x, lambda x: F.cross_entropy(self.student(x), self.labels, reduction="sum"))
        self.student.train()
        adversarial, clean = self.student(x_adv), self.student(self.x)
        guide = self.teacher(x_adv)
        trust = torch.ones(BATCH, dtype=self.x.dtype)
        for sample in range(BATCH):
            trust[sample] = F.softmax(guide, dim=1)[sample][self.labels[sample].item()].pow(0.1).item()
        own = self.student(self.x) if self.faithful else clean
        given = torch.ones_like(trust) if self.faithful else trust
        loss = (kl_sum(adversarial, target).sum(dim=1) * given).sum() / BATCH + (kl_sum(adversarial, own).sum(dim=1) * (1 - trust)).sum() / BATCH
        if self.faithful:
            loss = loss + 0.0 * F.cross_entropy(clean, self.labels)
        return self._learned(x_adv, loss)

    def adaad(self, generator: torch.Generator) -> Result:
        """boyellow/AdaAD, main.py with its alpha of 1: the clean passes of both networks are made, and multiplied by 0."""
        self.student.eval()
        start = self.x + 0.001 * torch.randn(self.x.shape, generator=generator)
        x_adv = authors_attack(start, self.x, lambda x: kl_sum(self.student(x), self.teacher(x)).sum())
        self.student.train()
        self.optimizer.zero_grad()
        clean = self.student(self.x) if self.faithful else None
        adversarial = self.student(x_adv)
        with torch.no_grad():
            target = self.teacher(self.x) if self.faithful else None
            target_adv = self.teacher(x_adv)
        loss = kl_sum(adversarial, target_adv).sum() / BATCH
        if clean is not None and target is not None:
            loss = loss + 0.0 * kl_sum(clean, target).sum() / BATCH
        return self._learned(x_adv, loss)

    def _learned(self, x_adv: Tensor, loss: Tensor) -> Result:
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return Result(x_adv, loss.detach())


class Ours:
    """A step as `kdpipe.stages.training` takes it. `known`: the teacher's logits on the clean batch are in the table; else the teacher is asked each step."""

    def __init__(self, objective: Objective, student: nn.Module, teacher: nn.Module, dtype: torch.dtype, *, known: bool, awp: bool = False) -> None:
        self.objective, self.awp = objective, awp
        self.student = copy.deepcopy(student).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = copy.deepcopy(teacher).to(dtype).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, self.labels = batch()[0].to(dtype), batch()[1]
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.foldable = foldable_pairs(self.student.eval(), self.x[:2])
        self.auxiliary = objective.auxiliary(Setting(self.student, (module,), self.x[:2], BATCH, lambda: copy.deepcopy(self.student)))
        self.student.train()
        with torch.no_grad():
            logits = module(self.x)
        self.teacher = Teacher(module, (lambda indices: logits[indices]) if known else None, foldable_pairs(module, self.x[:2]))
        modules = [self.student] if self.auxiliary is None else [self.student, self.auxiliary]
        parameters = [parameter for one in modules for parameter in one.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, nesterov=True, fused=True, **RATE)

    def step(self, number: int) -> Result:
        """The step whose attack starts at seed `number`."""
        step = Step(
            x=self.x,
            labels=self.labels,
            indices=torch.arange(BATCH),
            student=self.student,
            generator=torch.Generator().manual_seed(number),
            teachers=(self.teacher,),
            auxiliary=self.auxiliary,
            augmented=self.teacher.known is None,
            progress=0.5,
            number=1,
            foldable=self.foldable,
        )
        robust = self.objective if isinstance(self.objective, RobustObjective) else None
        x_adv = self.x if robust is None else robust.attacked(step)

        def loss() -> Tensor:
            return (self.objective.loss(step) if robust is None else robust.outer(step, x_adv)).total

        if self.awp:
            with perturbed(self.student, loss, 0.005):
                return self._learned(x_adv, loss())
        return self._learned(x_adv, loss())

    def _learned(self, x_adv: Tensor, loss: Tensor) -> Result:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return Result(x_adv, loss.detach())


def objective(name: str) -> Objective:
    """The objective with its defaults, and this page's attack."""
    kind = objective_class(name, at="benchmark")
    return kind.model_validate({"attack": ATTACK} if issubclass(kind, RobustObjective) else {})


def of_one_teacher(name: str) -> bool:
    """Whether the objective can be timed with a student and a single teacher."""
    kind = objective_class(name, at="benchmark")
    return not kind().teacher_roles if not issubclass(kind, RobustObjective) else not objective(name).teacher_roles


Way = Callable[[], Authors | Ours]


def authors_ways(student: nn.Module, teacher: nn.Module) -> dict[str, Way]:
    """The authors' loops, by name."""
    return {name: lambda name=name: Authors(name, student, teacher, torch.float32, faithful=True) for name in AUTHORS}  # type: ignore[misc]


def our_ways(student: nn.Module, teacher: nn.Module) -> dict[str, Way]:
    """Ours: the three against the authors', with and without known logits."""
    ways: dict[str, Way] = {}
    for name in AUTHORS:
        for known in (False, True):
            made = objective(name)
            ways[f"{name}, {'logits known' if known else 'teacher asked'}"] = lambda made=made, known=known: Ours(  # type: ignore[misc]
                made, student, teacher, torch.float32, known=known
            )
    return ways


def cost_ways(student: nn.Module, teacher: nn.Module) -> dict[str, Way]:
    """Every objective, its teacher asked each step; and one with its weights perturbed."""
    chosen = [name for name in names(PACKAGE) if of_one_teacher(name)]
    ways: dict[str, Way] = {name: lambda name=name: Ours(objective(name), student, teacher, torch.float32, known=False) for name in chosen}  # type: ignore[misc]
    ways["rslad, weights perturbed"] = lambda: Ours(objective("rslad"), student, teacher, torch.float32, known=False, awp=True)
    return ways


@dataclass(frozen=True)
class Settings:
    """`clock`: `wall` or `cpu`."""

    threads: int
    clock: str


class Process:
    """A process of its own, with its own allocator settings, that takes steps when asked."""

    def __init__(self, kind: str, pair: tuple[Shape, Shape], settings: Settings, *, keep: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, pair, settings, keep), daemon=True)
        self._process.start()
        self.names: list[str] = self._ours.recv()

    def seconds(self, name: str, number: int) -> float:
        """How long the step took in the process that took it."""
        self._ours.send((name, number))
        return float(self._ours.recv())

    def close(self) -> None:
        """End it."""
        self._ours.send(None)
        self._process.join()


def _serve(connection: Connection, kind: str, pair: tuple[Shape, Shape], settings: Settings, keep: bool) -> None:
    clock = time.perf_counter_ns if settings.clock == "wall" else time.process_time_ns
    torch.set_num_threads(settings.threads)
    if keep:
        keep_freed_memory()
    networks = network(pair[0], seed=0), network(pair[1], seed=1)
    ways = {name: way() for name, way in {"authors": authors_ways, "ours": our_ways, "costs": cost_ways}[kind](*networks).items()}
    connection.send(list(ways))
    while (order := connection.recv()) is not None:
        name, number = order
        begin = clock()
        ways[name].step(number)
        connection.send((clock() - begin) / 1e9)


def timed(processes: dict[str, Process], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each way of each process, taking turns; the first step of each is not counted."""
    turns = [(label, name) for label, process in processes.items() for name in process.names]
    seconds: dict[str, dict[str, list[float]]] = {label: {name: [] for name in process.names} for label, process in processes.items()}
    for number in range(rounds + 1):
        for label, name in turns if number % 2 == 0 else reversed(turns):
            took = processes[label].seconds(name, number)
            if number > 0:
                seconds[label][name].append(took)
    return seconds


def paired_ratio(slow: list[float], fast: list[float]) -> float:
    """The median of the ratios of one round each."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def race(pair: tuple[Shape, Shape], settings: Settings, rounds: int) -> dict[str, dict[str, float]]:
    """How many times as fast as the authors' loop each of ours is; and with the allocator's settings given to both."""
    kinds = {"authors": ("authors", False), "authors, memory kept": ("authors", True), "ours": ("ours", True)}
    processes = {label: Process(kind, pair, settings, keep=keep) for label, (kind, keep) in kinds.items()}
    seconds = timed(processes, rounds)
    for process in processes.values():
        process.close()
    figures: dict[str, dict[str, float]] = {}
    for way, times in seconds["ours"].items():
        name = way.partition(",")[0]
        figures[way] = {
            "times as fast as the authors' loop": round(paired_ratio(seconds["authors"][name], times), 2),
            "and where that keeps memory too": round(paired_ratio(seconds["authors, memory kept"][name], times), 2),
        }
    return figures


def costs(pair: tuple[Shape, Shape], settings: Settings, rounds: int) -> dict[str, dict[str, float]]:
    """Each objective's step as a multiple of the plain one's; beside it the passes as a multiple of plain's 3."""
    process = Process("costs", pair, settings, keep=True)
    seconds = timed({"ours": process}, rounds)["ours"]
    process.close()
    tau = 3 * (paired_ratio(seconds["kd"], seconds["plain"]) - 1)
    figures = {}
    for name, times in seconds.items():
        told = name.partition(",")[0]
        passes = PASSES.get(told, lambda tau: 3 + tau)(tau) if told != "alternating" else 2 * STEPS + 3 + tau
        figures[name] = {"measured": round(paired_ratio(times, seconds["plain"]), 1), "by passes": round((passes + 3 * ("perturbed" in name)) / 3, 1)}
    return {"teacher's pass in student's passes": {"measured": round(tau, 1)}, **figures}


def equality(name: str, teacher: nn.Module, student: nn.Module, dtype: torch.dtype, steps: int) -> dict[str, float]:
    """How far ours is from the same loss restated: x' and loss of the first step, the weights after some."""
    ours, restated = Ours(objective(name), student, teacher, dtype, known=True), Authors(name, student, teacher, dtype, faithful=False)
    first: dict[str, float] = {}
    for number in range(steps):
        one, other = ours.step(number), restated.step(number)
        if number == 0:
            first["share of x' that differs"] = ((one.x_adv - other.x_adv).abs() > 1e-5).double().mean().item()
            first["loss, relative"] = abs(one.loss.item() / other.loss.item() - 1)
    weights = [torch.cat([parameter.detach().flatten() for parameter in way.student.parameters()]) for way in (ours, restated)]
    distance = ((weights[0] - weights[1]).norm() / weights[1].norm()).item()
    return {what: float(f"{value:.1e}") for what, value in {**first, f"weights after {steps} steps, relative": distance}.items()}


def main() -> None:
    """Print the figures as JSON, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each way that are timed")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what is read: cpu, of the process, bears a busy machine, with one thread")
    parser.add_argument("--steps", type=int, default=3, help="steps after which weights are compared")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(options.threads, options.clock)
    student, teacher = network(RESNET_8, seed=0), network(RESNET_20, seed=1)
    figures = {
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
        **{
            f"against the authors' loops, {name}": race(pair, settings, max(1, options.rounds if name == MANY_ROUNDS else options.rounds // 2))
            for name, pair in PAIRS.items()
        },
        "step as a multiple of plain's, teacher ResNet-20": costs(PAIRS["teacher ResNet-20"], settings, max(1, options.rounds // 2)),
        **{
            f"the same loss restated, {str(dtype).removeprefix('torch.')}": {name: equality(name, teacher, student, dtype, options.steps) for name in AUTHORS}
            for dtype in (torch.float64, torch.float32)
        },
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
