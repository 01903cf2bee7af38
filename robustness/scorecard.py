"""The scorecard: all quality figures of one model on one split, each with n and a 95 % interval."""

from typing import Literal

from pydantic import BaseModel, Field

Threat = Literal["linf", "l2"]
OodScore = Literal["max-softmax", "energy"]


class Figure(BaseModel, extra="forbid", frozen=True):
    """A measured number and its 95 % interval, or the reason why there is none. Accuracies are in per cent."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = Field(None, description="why it was not measured; None where it was")


UNKNOWN = Figure(value=None, reason="not measured: the scorecard is older than this figure")


class AttackFigure(BaseModel, extra="forbid", frozen=True):
    """Accuracy under one attack. `crafted_on`: the models whose gradients (or answers) made the samples; worst case over them."""

    name: str = Field(description="as in [evaluate] attacks: 'fgsm', 'pgd-20'")
    norm: Threat
    epsilon: float
    steps: int
    restarts: int
    crafted_on: tuple[str, ...]
    accuracy: Figure
    note: str | None = Field(None, description="what its name does not say: where it is not the standard attack of that name; None where it is")


class CorruptionFigure(BaseModel, extra="forbid", frozen=True):
    """Accuracy under one corruption at one severity, 1 (weak) to 5 (strong)."""

    name: str
    severity: int = Field(ge=1, le=5)
    accuracy: Figure


class CorruptionTypeFigure(BaseModel, extra="forbid", frozen=True):
    """One corruption in the mean of its severities. `error`: share of wrong answers, in per cent."""

    name: str
    error: Figure


class EpsilonPoint(BaseModel, extra="forbid", frozen=True):
    """One point of robust accuracy against epsilon; accuracy at 0 is the clean one on the same samples."""

    epsilon: float
    accuracy: Figure


class ReliabilityBin(BaseModel, extra="forbid", frozen=True):
    """One of the equal-width confidence bins: mean confidence and accuracy in [0, 1], None where empty."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


class CoveragePoint(BaseModel, extra="forbid", frozen=True):
    """One point of risk against coverage: the error rate, in per cent, on the most confident share of the samples."""

    coverage: float = Field(gt=0, le=1)
    risk: Figure


class OodFigure(BaseModel, extra="forbid", frozen=True):
    """How well one score of the model tells the judged split from samples that are none of its task; in per cent."""

    name: str = Field(description="the set from outside: 'uniform-noise', or data as in [task] data")
    score: OodScore
    auroc: Figure
    fpr95: Figure = Field(description="share from outside that passes where 95 % from inside do; smaller is better")


class TemperatureEffect(BaseModel, extra="forbid", frozen=True):
    """What dividing the file's logits by `value` did on the judged split: the figures that it would have without, and paired differences after less before."""

    value: float = Field(gt=0)
    nll_before: Figure
    ece_before: Figure
    brier_before: Figure
    nll_change: Figure
    brier_change: Figure


class MaskingCheck(BaseModel, extra="forbid", frozen=True):
    """One sanity check of the attacks (DESIGN §7.3). `passed` None: could not be checked, `detail` says why."""

    name: str
    passed: bool | None
    detail: str


class Scorecard(BaseModel, extra="forbid", frozen=True):
    """One model, judged. `model`: 'teacher', 'student', 'pruned', 'twin', 'int8', 'ptq', 'float'."""

    model: str
    form: Literal["network", "twin", "file"]
    runtime: str | None = Field(None, description="'onnxruntime 1.32.0 CPU' for a file; None for a torch network")
    split: Literal["test", "validation"] = "test"
    size_bytes: int
    parameters: int | None = None
    macs: int | None = None
    clean: Figure
    nll: Figure = Field(description="mean negative log-likelihood in nats")
    ece: Figure = Field(description="expected calibration error, 15 equal-width bins, per cent")
    attacks: tuple[AttackFigure, ...] = ()
    robust: Figure = Field(description="per-sample worst over all attacks at the configured epsilon")
    epsilon_curve: tuple[EpsilonPoint, ...] = ()
    corruptions: tuple[CorruptionFigure, ...] = ()
    corruption_mean: Figure
    corruption_types: tuple[CorruptionTypeFigure, ...] = Field((), description="error of each corruption over its severities; the worst is the largest")
    reliability: tuple[ReliabilityBin, ...] = ()
    ece_mass: Figure = Field(UNKNOWN, description="the same over 15 bins of equally many samples, per cent")
    brier: Figure = Field(UNKNOWN, description="mean squared distance of the probabilities from the label's one-hot vector, in [0, 2]")
    aurc: Figure = Field(UNKNOWN, description="area under risk against coverage: mean error rate on the most confident samples, per cent")
    risk_coverage: tuple[CoveragePoint, ...] = ()
    ood: tuple[OodFigure, ...] = ()
    temperature: TemperatureEffect | None = Field(None, description="where the file's logits were divided by a temperature")
    masking: tuple[MaskingCheck, ...] = ()
