"""How any network is trained here: one loop for teachers, students, pruned networks and twins.

The weights kept are those of the epoch that was best on the validation split. Every draw is from a stream named after the
epoch and every epoch ends in a checkpoint, so a killed training goes on to the very same bits.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import canonical_json
from kdpipe.foundation.networks import Network
from kdpipe.foundation.randomness import lent_to_torch, stream
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.stages.averaging import average_, average_equally_, averaged_copy, settle_norms_
from kdpipe.stages.checkpoint import Checkpoint, CheckpointFolder, load_optimizer_state_, optimizer_state, state_of, under
from kdpipe.stages.folding import Pair, foldable_pairs
from kdpipe.stages.history import EpochRecord, History
from kdpipe.stages.known_targets import KnownTargets
from kdpipe.stages.learned import Learned, learned_of
from kdpipe.stages.memory_format import channels_last, has_convolutions
from kdpipe.stages.objectives.configured import as_keys
from kdpipe.stages.objectives.objective import Loss, Objective, RobustObjective, Setting, Step, Teacher
from kdpipe.stages.schedule import learning_rate
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.target_cache import FOLDER, Table, identity_of
from kdpipe.stages.training_config import SelectBy, TrainingConfig
from kdpipe.stages.validation import rank, selected_by, validate
from kdpipe.stages.weight_perturbation import perturbed
from kdpipe.tasks.data.batches import Batch, batches, number_of_batches

CHECKPOINTS = "checkpoint"
"""The folder of checkpoints in a stage's work folder."""

T = TypeVar("T")

SETTLING_SAMPLES = 8192
"""training samples from which BatchNorm statistics of averaged weights are estimated, at most"""


class TrainingDivergedError(ConfigError):
    """The loss or the weights are no longer finite; the checkpoints of the finished epochs stay."""


def train(
    network: Network,
    objective: Objective,
    teacher: Network | Sequence[Network] | None,
    inputs: Inputs,
    config: TrainingConfig,
    context: Context,
    *,
    label: str,
    before_epoch: Callable[[int], None] | None = None,
    fresh: Callable[[], nn.Module] | None = None,
) -> History:
    """Train `network.module` in place, from its present weights, on `inputs.data`; it is left with the best epoch's weights, in evaluation mode.

    `label` names the training within its stage: its checkpoints, random streams and progress. Checkpoints in
    `context.folder` are resumed from, and a finished one is loaded and not repeated; the stage removes them with
    `remove_checkpoints` when all its trainings are done. `before_epoch(epoch)`, from 0, is called after the module was put
    into training mode: it must depend on nothing but the epoch. `fresh`: as in `Setting`. Raises TrainingDivergedError, a ConfigError.
    """
    teachers = () if teacher is None else (teacher,) if isinstance(teacher, Network) else tuple(teacher)
    if objective.uses_teacher and not teachers:
        raise ConfigError(f"objective {objective.name!r} needs a teacher", at=label, do="choose an objective without one: plain, at, trades")
    with channels_last(network.module, *(one.module for one in teachers)), quiet(*(one.module for one in teachers)):
        run = _prepared(network.module, objective, teachers, inputs, config, context, label, fresh)
        folder = CheckpointFolder(context.folder / CHECKPOINTS / label, _identity(network, objective, teachers, inputs, config, context, label))
        found = folder.newest(context.progress.say)
        if found is not None:
            _resume_(run, found)
            context.progress.say(f"{label}: resumed after epoch {found.done} of {config.epochs}")
        while not run.finished:
            epoch = len(run.records)
            run.student.train()
            if before_epoch is not None:
                before_epoch(epoch)
            loss = _train_epoch_(run, epoch)
            _judge_(run, epoch, loss)
            folder.write(_checkpoint(run))
        network.module.load_state_dict(run.best_state)
        network.module.eval()
    return History(
        label=label,
        objective=objective.name,
        select_by=run.select_by,
        epochs=tuple(run.records),
        best_epoch=run.best_epoch,
        stopped_early=len(run.records) < config.epochs,
    )


@dataclass
class _Run:
    """The moving parts of one training; what changes from epoch to epoch is what `_checkpoint` holds."""

    student: nn.Module
    objective: Objective
    teachers: tuple[Teacher, ...]
    auxiliary: nn.Module | None
    learned: Learned | None
    optimizer: Optimizer
    average: nn.Module | None
    inputs: Inputs
    config: TrainingConfig
    context: Context
    label: str
    foldable: tuple[Pair, ...]
    select_by: SelectBy
    validation_attack: Attack | None
    records: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @property
    def finished(self) -> bool:
        done = len(self.records)
        patience = self.config.patience
        return done >= self.config.epochs or (patience is not None and done - self.best_epoch >= patience)


def _prepared(
    student: nn.Module,
    objective: Objective,
    teachers: tuple[Network, ...],
    inputs: Inputs,
    config: TrainingConfig,
    context: Context,
    label: str,
    fresh: Callable[[], nn.Module] | None,
) -> _Run:
    attack = objective.attack if isinstance(objective, RobustObjective) else None
    select_by = selected_by(config.select_by, attack)
    if select_by != "clean" and attack is None:
        problem = f"select_by = {select_by!r} needs an attack, objective {objective.name!r} has none"
        raise ConfigError(problem, at=label, do="set select_by = 'clean', or choose a robust objective: at, trades, rslad")
    split = inputs.data.train
    example = torch.from_numpy(split.read(torch.arange(min(2, len(split))).numpy()))
    with lent_to_torch(stream(context.seed, f"{label}/auxiliary")):
        student.eval()
        auxiliary = objective.auxiliary(Setting(student, tuple(teacher.module for teacher in teachers), example, len(split), fresh))
    learned = learned_of(objective)
    return _Run(
        student=student,
        objective=objective,
        teachers=tuple(_teacher(teacher, objective, example, inputs, context, label) for teacher in teachers),
        auxiliary=auxiliary,
        learned=learned,
        optimizer=_optimizer([module for module in (student, auxiliary, learned) if module is not None], config),
        average=None if config.ema_decay is None and config.swa_start is None else averaged_copy(student),
        inputs=inputs,
        config=config,
        context=context,
        label=label,
        foldable=foldable_pairs(student, example) if objective.robust else (),
        select_by=select_by,
        validation_attack=attack if select_by != "clean" else None,
    )


def _teacher(teacher: Network, objective: Objective, example: Tensor, inputs: Inputs, context: Context, label: str) -> Teacher:
    data, cache, kept = inputs.data, context.target_cache, None
    if cache is not None:
        identity = identity_of(teacher.module, teacher.spec.model_dump(mode="json"), data.digest, data.classes)
        kept = Table(context.project / FOLDER, identity, cache.most_mb)
    known = KnownTargets(teacher.module, data.train, data.classes, context.progress, label, kept)
    return Teacher(teacher.module, known if known.fits else None, foldable_pairs(teacher.module, example) if objective.robust else ())


def _optimizer(modules: list[nn.Module], config: TrainingConfig) -> Optimizer:
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=True)
    return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def _train_epoch_(run: _Run, epoch: int) -> dict[str, float]:
    """One pass over the training split; the means of the loss and its terms, in float64."""
    seed, config, split = run.context.seed, run.config, run.inputs.data.train
    size, drop_last = batching(len(split), config.batch_size)
    count = number_of_batches(split, size, drop_last=drop_last)
    name = f"{run.label}/{{}}/epoch-{epoch}"
    augment, attack = stream(seed, name.format("augment")), stream(seed, name.format("attack"))
    order = batches(split, size, generator=stream(seed, name.format("order")), drop_last=drop_last)
    sums: dict[str, float] = {}
    samples = 0
    with lent_to_torch(stream(seed, name.format("layers"))):
        for number, batch in enumerate(run.context.progress(order, f"{run.label} {epoch + 1}/{config.epochs}", total=count, unit="batch")):
            progress = (epoch + number / count) / config.epochs
            step = _step(run, batch, augment, attack, progress, epoch, number)
            loss = _take_step_(run, step, f"epoch {epoch + 1}, batch {number + 1} of {count}")
            for term, value in {"total": loss.total, **loss.terms}.items():
                sums[term] = sums.get(term, 0.0) + float(value.detach()) * len(batch.labels)
            samples += len(batch.labels)
    return {term: value / samples for term, value in sums.items()}


def batching(samples: int, batch_size: int) -> tuple[int, bool]:
    """The batch size in use and whether the last batch is dropped.

    A set smaller than a batch is one batch. A last batch of under a quarter is dropped: its BatchNorm statistics would be
    noise (of one sample: an error), and the order is drawn anew each epoch, so no sample is always left out.
    """
    size = min(batch_size, samples)
    return size, 0 < samples % size < max(2, size // 4)


def _step(run: _Run, batch: Batch, augment: torch.Generator, attack: torch.Generator, progress: float, epoch: int, number: int) -> Step:
    x = run.inputs.task.augment(batch.x, augment)
    augmented = not torch.equal(x, batch.x)
    if x.ndim == 4 and has_convolutions(run.student):
        x = x.contiguous(memory_format=torch.channels_last)
    return Step(
        x=x,
        labels=batch.labels,
        indices=batch.indices,
        student=run.student,
        generator=attack,
        teachers=run.teachers,
        auxiliary=run.auxiliary,
        augmented=augmented,
        progress=progress,
        epoch=epoch,
        number=number,
        foldable=run.foldable,
    )


def _take_step_(run: _Run, step: Step, where: str) -> Loss:
    config = run.config
    rate = learning_rate(
        config.learning_rate, step.progress, schedule=config.schedule, warmup=min(1.0, config.warmup_epochs / config.epochs), milestones=config.milestones
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    with run.objective.around(step):
        loss_of = partial(_loss_at, run, step, _checked(run, step, partial(_attacked, run, step), where), where)
        with _perturbation(run, step, loss_of):
            loss = loss_of()
            run.optimizer.zero_grad(set_to_none=True)
            loss.total.backward()  # type: ignore[no-untyped-call]
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_([p for group in run.optimizer.param_groups for p in group["params"]], config.clip_norm)
            run.optimizer.step()
    run.steps += 1
    if run.average is not None and config.ema_decay is not None:
        average_(run.average, run.student, config.ema_decay, run.steps)
    return loss


def _attacked(run: _Run, step: Step) -> Tensor | None:
    """x' where the objective has it apart from its loss; it is looked for once a step, at the weights as they are."""
    return run.objective.attacked(step) if isinstance(run.objective, RobustObjective) and run.objective.splits else None


def _loss_at(run: _Run, step: Step, x_adv: Tensor | None, where: str) -> Loss:
    """The loss at the present weights, with what is learned beside them; it may be asked several times a step."""
    objective = run.objective if run.learned is None else run.learned.bound(run.objective, step.progress)
    loss = _checked(
        run, step, lambda: objective.loss(step) if x_adv is None or not isinstance(objective, RobustObjective) else objective.outer(step, x_adv), where
    )
    if run.learned is not None:
        loss = run.learned.weighed(loss, f"{run.label}, objective {run.objective.name!r}")
    if not torch.isfinite(loss.total):
        raise _diverged(run, f"the loss is {loss.total.item()}", where)
    return loss


def _perturbation(run: _Run, step: Step, loss_of: Callable[[], Loss]) -> AbstractContextManager[None]:
    awp = run.config.awp
    if awp is None or step.progress < awp.start:
        return nullcontext()
    return perturbed(run.student, lambda: loss_of().total, awp.gamma, remembering=run.auxiliary)


def _checked(run: _Run, step: Step, ask: Callable[[], T], where: str) -> T:
    try:
        return ask()
    except ConfigError as error:  # the attack refuses a loss that is not finite; what else is wrong is told as it is
        with quiet(run.student), torch.no_grad():
            if torch.isfinite(run.student(step.x)).all():
                raise
        raise _diverged(run, "the network's outputs are not finite", where) from error


def _diverged(run: _Run, fact: str, where: str) -> TrainingDivergedError:
    rate = run.config.learning_rate
    return TrainingDivergedError(
        f"training diverged: {fact}",
        at=f"{run.label}, {where}",
        do=f"lower learning_rate (now {rate:g}, try {rate / 3:.2g}) or set clip_norm = 1.0; {len(run.records)} finished epochs are kept as checkpoint",
    )


def _judge_(run: _Run, epoch: int, loss: dict[str, float]) -> None:
    """Validate, record the epoch and keep its weights if it is the best so far; averaged ones where there are such."""
    judged = _averaged(run, epoch)
    if not all(torch.isfinite(value).all() for value in judged.state_dict().values() if value.is_floating_point()):
        raise _diverged(run, "the weights are not finite", f"end of epoch {epoch + 1}")
    data, size, attacked = run.inputs.data.validation, run.config.batch_size * 4, run.config.validation_attack_samples
    validation = validate(judged, data, size, run.validation_attack, attacked, run.context.seed, run.label)
    rate = run.optimizer.param_groups[0]["lr"]
    run.records.append(EpochRecord(epoch=epoch + 1, learning_rate=rate, loss=loss, validation=validation))
    if run.best_epoch == 0 or rank(validation, run.select_by) > rank(run.records[run.best_epoch - 1].validation, run.select_by):
        run.best_epoch = epoch + 1
        run.best_state = under("best", state_of("best", judged))
    robust = "" if validation.robust_accuracy is None else f", under attack {validation.robust_accuracy:.1%}"
    best = " (best)" if run.best_epoch == epoch + 1 else ""
    run.context.progress.say(f"{run.label} {epoch + 1}/{run.config.epochs}: loss {loss['total']:.4f}, validation {validation.clean_accuracy:.1%}{robust}{best}")


def _averaged(run: _Run, epoch: int) -> nn.Module:
    """What is judged after the epoch: the average, brought up to date, where there is one by now; else the student."""
    config = run.config
    if run.average is None:
        return run.student
    if config.swa_start is not None:
        count = sum(done > config.swa_start * config.epochs for done in range(1, epoch + 2))
        if count == 0:
            return run.student
        average_equally_(run.average, run.student, count)
        with lent_to_torch(stream(run.context.seed, f"{run.label}/averaged-layers/epoch-{epoch}")):
            settle_norms_(run.average, _settling_samples(run, epoch))
    return run.average


def _settling_samples(run: _Run, epoch: int) -> Iterator[Tensor]:
    """Training samples, augmented as in training, in whole batches."""
    seed, split = run.context.seed, run.inputs.data.train
    size, _ = batching(len(split), run.config.batch_size)
    augment, order = (stream(seed, f"{run.label}/averaged-{use}/epoch-{epoch}") for use in ("augment", "order"))
    for batch in islice(batches(split, size, generator=order, drop_last=True), max(1, SETTLING_SAMPLES // size)):
        yield run.inputs.task.augment(batch.x, augment)


def _checkpoint(run: _Run) -> Checkpoint:
    tensors = {**state_of("student", run.student), **optimizer_state("optimizer", run.optimizer)}
    if run.auxiliary is not None:
        tensors |= state_of("auxiliary", run.auxiliary)
    if run.learned is not None:
        tensors |= state_of("learned", run.learned)
    if run.average is not None:
        tensors |= state_of("average", run.average)
    tensors |= {f"best/{name}": value for name, value in run.best_state.items()}
    facts = {"records": [record.model_dump(mode="json") for record in run.records], "best_epoch": run.best_epoch, "steps": run.steps}
    return Checkpoint(len(run.records), tensors, facts)


def _resume_(run: _Run, checkpoint: Checkpoint) -> None:
    run.student.load_state_dict(under("student", checkpoint.tensors))
    if run.auxiliary is not None:
        run.auxiliary.load_state_dict(under("auxiliary", checkpoint.tensors))
    if run.learned is not None:
        run.learned.load_state_dict(under("learned", checkpoint.tensors))
    if run.average is not None:
        run.average.load_state_dict(under("average", checkpoint.tensors))
    load_optimizer_state_(run.optimizer, under("optimizer", checkpoint.tensors))
    run.best_state = under("best", checkpoint.tensors)
    run.records = [EpochRecord.model_validate(record) for record in checkpoint.facts["records"]]
    run.best_epoch, run.steps = checkpoint.facts["best_epoch"], checkpoint.facts["steps"]


def _identity(
    network: Network, objective: Objective, teachers: tuple[Network, ...], inputs: Inputs, config: TrainingConfig, context: Context, label: str
) -> str:
    """A digest of all that determines the training, the initial weights included: a checkpoint of another one is never resumed."""
    facts = {
        "training": TrainingConfig(**{name: getattr(config, name) for name in TrainingConfig.model_fields}).model_dump(mode="json", exclude_none=True),
        "objective": {key: value for key, value in as_keys(objective).items() if value is not None},
        "networks": [one.spec.model_dump(mode="json") for one in (network, *teachers)],
        "data": inputs.data.digest,
        "seed": context.seed,
        "label": label,
    }
    digest = hashlib.sha256(canonical_json(facts))
    for one in (network, *teachers):
        for name, value in one.module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
