"""Quantization for one target: calibrated (post-training), then fine-tuned with fake quantization by the student's own objective.

The attack of a robust objective runs inside, on the twin. The better of both on the validation split becomes the artifact; the calibrated one is kept
beside it in `ptq/`. Layers stay in float by a list, or, with `keep_float = "auto"`, as few as let the file keep to its budget (`mixed_precision`). Where
activations stay in float nothing is calibrated; float16 is not trained either: it moves no weight by more than 0.05 %.
Source: Jacob et al. 2018 (arXiv:1712.05877), section 3, with the choices of `docs/quantization.md`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import write_json
from kdpipe.foundation.networks import Network, load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, float_layers_of, freeze, freeze_observers_, layer_names, plan_of, prepare
from kdpipe.foundation.quantization.float16_range import require_float16_range
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.checkpoint import remove_checkpoints
from kdpipe.stages.distill import fresh_student
from kdpipe.stages.history import History, write_history
from kdpipe.stages.mixed_precision import Limits, MixedPrecision, Question, Samples, right, search
from kdpipe.stages.objectives.configured import ConfiguredObjective
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare
from kdpipe.stages.objectives.objective import Objective, RobustObjective
from kdpipe.stages.search_attack import SearchAttack, UnderAttack
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.teachers import teaching
from kdpipe.stages.training import CHECKPOINTS, train
from kdpipe.stages.training_config import SelectBy, TrainingConfig
from kdpipe.stages.validation import Validation, rank, selected_by, validate
from kdpipe.targets.profile import Profile
from kdpipe.tasks.data.batches import batches

VERSION = 1
TOOLS = ("torch", "safetensors", "numpy")

PTQ_FOLDER = "ptq"
QUANTIZATION_FILE = "quantization.json"
SHARP_DROP = 0.10
"""Clean validation accuracy, as a share, that training may lose against calibration before the stage stops."""

SENSITIVITY_SAMPLES = 512
"""Validation samples on which the sensitivities are measured: they give an order, the files decide."""

_BATCH = 256


class QatConfig(TrainingConfig, extra="forbid", frozen=True):
    """`[qat]`: how the twin is calibrated and fine-tuned. Objective and attack are those of `[distill]`."""

    epochs: int = Field(5, ge=0, description="passes over the training split; 0: calibrate only")
    learning_rate: float = Field(
        0.005, gt=0, allow_inf_nan=False, description="highest learning rate of the schedule; a tenth of distillation's is a good start"
    )
    batch_norm: Literal["live", "folded"] = Field(
        "live", description="live: BatchNorms normalise in training and are folded at the end; folded: before, fragile at high learning rates"
    )
    frozen_share: float = Field(1 / 3, ge=0, le=1, description="share of the epochs, at the end, in which ranges and BatchNorm statistics stay fixed")
    calibration_samples: int | None = Field(None, ge=1, description="training samples for calibration; absent: the target profile's number")
    calibration_method: Literal["minmax", "percentile", "mse"] | None = Field(None, description="how ranges are found; absent: the target profile's method")
    keep_float: Literal["auto"] | tuple[str, ...] | None = Field(
        None,
        description="layers that stay in float32: names or patterns, e.g. ['conv1', 'layer3.*'], or 'auto': the fewest with which the exported file keeps "
        "to its budget, measured in the target's runtimes on validation",
    )
    keep_float_drop: float | None = Field(
        None,
        ge=-100,
        le=100,
        description="the budget of 'auto': points below the teacher on validation, upper 95 % bound; absent: the target's budget clean_drop",
    )
    keep_float_robust: float | None = Field(
        None,
        ge=0,
        le=100,
        description="a second budget of 'auto': per cent right under PGD-20 on validation_attack_samples samples of validation, lower 95 % bound, with norm "
        "and epsilon of [evaluate]; absent: the target's budget robust_accuracy, where [evaluate] has attacks",
    )
    search_attack: SearchAttack | None = Field(None, description="filled by the build: the ball of that attack")
    measured_in: tuple[str, ...] | None = Field(None, description="filled by the build: the runtimes, with versions, that decide what stays in float")
    objective: ConfiguredObjective | None = Field(None, description="filled in from [distill]")
    teachers: tuple[TeacherShare, ...] | None = Field(None, description="filled in from [distill]")
    mixture: Mixture | None = Field(None, description="filled in from [distill]")

    @model_validator(mode="after")
    def _drop_of_a_search(self) -> Self:
        if self.keep_float_drop is not None and self.keep_float != "auto":
            raise ValueError("keep_float_drop is the budget of keep_float = 'auto'")
        if self.keep_float_robust is not None and self.keep_float != "auto":
            raise ValueError("keep_float_robust is a budget of keep_float = 'auto'")
        return self


class Outcome(BaseModel, extra="forbid", frozen=True):
    """`quantization.json`: validation figures before, after calibration and after fine-tuning (None where there was none), and which was kept."""

    scheme: Scheme
    calibration_samples: int
    calibration_method: str
    select_by: SelectBy
    float_network: Validation
    ptq: Validation
    qat: Validation | None
    kept: Literal["ptq", "qat"]
    float_layers: tuple[str, ...] = Field((), description="layers that stay in float32")
    mixed_precision: MixedPrecision | None = Field(None, description="how they were found; None where they were not searched for")

    @property
    def shipped(self) -> str:
        """What the file is called in reports: `int8`, `int8, 2 layers float`, `float16`. In machine-readable files its role is always `int8`."""
        name = {"weights-only": "int8 weights", "float16": "float16"}.get(self.scheme.kind or "", "int8")
        count = len(self.float_layers)
        kept = "float32" if self.scheme.kind == "float16" else "float"
        return f"{name}, {count} layer{'s' if count > 1 else ''} {kept}" if count else name


def check(sections: Mapping[str, Any], inputs: Inputs) -> None:
    """ConfigError where the student cannot be quantized; told before anything is trained."""
    profile, config = inputs.profile, sections["qat"]
    assert profile is not None, "qat is a step of a target"
    student = fresh_student(sections["distill"], inputs, seed=0).module.eval()
    prepare(student, profile.chosen_scheme, batch_norm=config.batch_norm, float_layers=_listed(config))


def run(inputs: Inputs, config: QatConfig, context: Context) -> Path:
    """The artifact folder with the frozen twin of the network in `prune`, and the calibrated one in `ptq/`."""
    profile, objective = inputs.profile, config.objective
    assert profile is not None, "qat is a step of a target"
    assert objective is not None or config.epochs == 0, "the pipeline fills the objective in"
    scheme = profile.chosen_scheme
    student = load_network(inputs.artifacts["prune"])
    twin = prepare(student.module, scheme, batch_norm=config.batch_norm, float_layers=_listed(config))
    samples = _calibrated_(twin, inputs, config, profile, context)
    calibrated_state = {name: value.clone() for name, value in twin.state_dict().items()}
    ptq = _finished(student, twin)
    judge = _Judge(inputs, config, context, objective)
    before, calibrated = judge(student.module), judge(ptq.module)
    how = f"calibrated on {samples} training samples" if scheme.quantizes_activations else "weights rounded"
    context.progress.say(f"{how}: validation {_told(calibrated)} (float: {_told(before)})")
    kept, tuned = ptq, None
    histories: list[History] = []
    if objective is not None and config.epochs > 0 and scheme.integer_weights:
        history = _fine_tune_(twin, student, objective, inputs, config, context)
        qat = _finished(student, twin)
        tuned = judge(qat.module)
        histories.append(history)
        if config.keep_float != "auto":  # a layer that stands no rounding may be the reason: the search finds it in the calibrated network
            _require_no_collapse(calibrated, tuned, config)
        kept = qat if rank(tuned, judge.select_by) >= rank(calibrated, judge.select_by) else ptq
        context.progress.say(f"fine-tuned: validation {_told(tuned)}; kept: {'fine-tuned' if kept is qat else 'calibrated only, it is better on validation'}")
    kept_is_ptq, found = kept is ptq, None
    if config.keep_float == "auto":
        state = calibrated_state if kept_is_ptq else {name: value.clone() for name, value in twin.state_dict().items()}
        question = _question(student, state, inputs, config, context, profile)
        found = _searched(student, state, config, question, fine_tuning_failed=kept_is_ptq and tuned is not None)
        if found.float_layers:
            kept = _finished(student, _with_float_layers(student, state, scheme, config, found.float_layers))
            ptq = kept if kept_is_ptq else _finished(student, _with_float_layers(student, calibrated_state, scheme, config, found.float_layers))
            calibrated, tuned = judge(ptq.module), None if tuned is None else tuned if kept_is_ptq else judge(kept.module)
    save_network(ptq, context.folder / PTQ_FOLDER)
    save_network(kept, context.folder)
    write_history(context.folder, *histories)
    outcome = Outcome(
        scheme=scheme,
        calibration_samples=samples,
        calibration_method=config.calibration_method or profile.calibration.method,
        select_by=judge.select_by,
        float_network=before,
        ptq=calibrated,
        qat=tuned,
        kept="ptq" if kept_is_ptq else "qat",
        float_layers=float_layers_of(kept.module),
        mixed_precision=found,
    )
    write_json(context.folder / QUANTIZATION_FILE, outcome.model_dump(mode="json"))
    remove_checkpoints(context.folder / CHECKPOINTS)
    return context.folder


def _listed(config: QatConfig) -> tuple[str, ...]:
    return () if config.keep_float is None or config.keep_float == "auto" else config.keep_float


def _calibrated_(twin: nn.Module, inputs: Inputs, config: QatConfig, profile: Profile, context: Context) -> int:
    """Set the twin's ranges from training samples drawn at random; how many there were: none where activations stay in float."""
    scheme, split = profile.chosen_scheme, inputs.data.train
    wanted = config.calibration_samples or profile.calibration.samples
    chosen = numpy_stream(context.seed, "qat/calibration").permutation(len(split))[:wanted]
    samples = (batch.x for batch in batches(split, _BATCH, limit=chosen))
    if not scheme.integer_weights:
        require_float16_range(twin, samples if scheme.half_arithmetic else None)
    if not scheme.quantizes_activations:
        return 0
    calibrate_(twin, samples, config.calibration_method or profile.calibration.method, percentile=profile.calibration.percentile)
    return len(chosen)


def _fine_tune_(twin: nn.Module, student: Network, objective: Objective, inputs: Inputs, config: QatConfig, context: Context) -> History:
    objective, teachers = teaching(objective, config.teachers or (), config.mixture, inputs)
    fixed_from = config.epochs - math.floor(config.epochs * config.frozen_share)

    def before_epoch(epoch: int) -> None:
        if epoch >= fixed_from:
            freeze_observers_(twin)

    live = Network(student.spec.model_copy(update={"quantization": plan_of(twin)}), twin)
    return train(live, objective, teachers, inputs, config, context, label="qat", before_epoch=before_epoch)


def _finished(student: Network, twin: nn.Module) -> Network:
    frozen = freeze(twin)
    return Network(student.spec.model_copy(update={"quantization": plan_of(frozen)}), frozen)


def _with_float_layers(student: Network, state: Mapping[str, Tensor], scheme: Scheme, config: QatConfig, float_layers: Sequence[str]) -> nn.Module:
    """The twin with the weights and ranges in `state`, in which these layers stay in float."""
    twin = prepare(student.module, scheme, batch_norm=config.batch_norm, float_layers=float_layers)
    twin.load_state_dict({name: state[name] for name in twin.state_dict()})
    return twin


def _question(student: Network, state: Mapping[str, Tensor], inputs: Inputs, config: QatConfig, context: Context, profile: Profile) -> Question:
    """What a search asks on the whole validation split of files of the twin with the weights and ranges in `state`."""
    assert config.keep_float_drop is not None or config.search_attack is not None, "the pipeline fills the limits in"
    split = inputs.data.validation
    every = np.arange(len(split))
    x, labels = split.read(every), split.labels[every]
    few = numpy_stream(context.seed, "qat/sensitivity").permutation(len(split))[:SENSITIVITY_SAMPLES].astype(np.int64)
    teacher = TorchPredictor(load_network(inputs.artifacts["teacher"]).module)
    layers = layer_names(student.module)
    under_attack = None
    if config.search_attack is not None and config.keep_float_robust is not None:
        floating = freeze(_with_float_layers(student, state, profile.chosen_scheme, config, layers))
        under_attack = UnderAttack(config.search_attack, split, config.validation_attack_samples, config.keep_float_robust, floating, context.seed)
    samples = Samples(x, labels, right(teacher, x, labels))
    return Question(layers, samples, few, Limits(config.keep_float_drop, under_attack), student.spec.contract, profile, context.progress)


def _searched(student: Network, state: Mapping[str, Tensor], config: QatConfig, question: Question, *, fine_tuning_failed: bool) -> MixedPrecision:
    """The layers that must stay in float in the twin with the weights and ranges in `state`."""

    def twin(float_layers: Sequence[str]) -> nn.Module:
        return freeze(_with_float_layers(student, state, question.profile.chosen_scheme, config, float_layers))

    found = search(twin, question)
    question.progress.say(found.told)
    if found.float_layers and fine_tuning_failed:
        listed = ", ".join(f'"{name}"' for name in found.float_layers)
        question.progress.say(f"fine-tuning with these layers on integers did not help; to fine-tune with them in float: [qat] keep_float = [{listed}]")
    return found


class _Judge:
    """Validation figures of any of the three networks on equal terms."""

    def __init__(self, inputs: Inputs, config: QatConfig, context: Context, objective: Objective | None) -> None:
        self._inputs, self._config, self._seed = inputs, config, context.seed
        attack = objective.attack if isinstance(objective, RobustObjective) else None
        self.select_by = selected_by(config.select_by, attack)
        self._attack: Attack | None = attack if self.select_by != "clean" else None

    def __call__(self, module: nn.Module) -> Validation:
        return validate(module, self._inputs.data.validation, _BATCH, self._attack, self._config.validation_attack_samples, self._seed, "qat")


def _require_no_collapse(calibrated: Validation, tuned: Validation, config: QatConfig) -> None:
    if calibrated.clean_accuracy - tuned.clean_accuracy <= SHARP_DROP:
        return
    live = "" if config.batch_norm == "live" else "set batch_norm = 'live', or "
    raise ConfigError(
        f"quantization-aware training fell from {calibrated.clean_accuracy:.1%} (calibrated) to {tuned.clean_accuracy:.1%} on validation",
        at="[qat]",
        do=f"{live}lower learning_rate (now {config.learning_rate:g}, try {config.learning_rate / 5:.2g}), or set epochs = 0 to keep the calibrated network",
    )


def _told(validation: Validation) -> str:
    robust = "" if validation.robust_accuracy is None else f", under attack {validation.robust_accuracy:.1%}"
    return f"{validation.clean_accuracy:.1%}{robust}"
