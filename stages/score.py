"""Judges one network of the build (teacher, student, pruned, twin) on the test split, and leaves the adversarial samples for the files."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, field_validator, model_validator

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import write_bytes, write_text
from kdpipe.foundation.networks import WEIGHTS_FILE, Network, build_network, load_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.randomness import stream
from kdpipe.robustness.attacks.method import AttackMethod, Logits, parse_attack
from kdpipe.robustness.attacks.methods.square import Square
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.attacks.strength import strongest
from kdpipe.robustness.corruption import SETS, corruption_named, suiting
from kdpipe.robustness.corruption_files import corruption_files, files_digest
from kdpipe.robustness.crafting import ALONE, CurvePoint, Replay, Work, craft, craft_curve, rescaled
from kdpipe.robustness.evaluation import Judgement, Questions, Subject, judge
from kdpipe.robustness.kept_batches import KeptBatches
from kdpipe.robustness.masking import checks_of_network
from kdpipe.robustness.samples import Int64Array, Samples, stratified
from kdpipe.robustness.scorecard import Threat
from kdpipe.stages.adversarial_files import write_adversarial
from kdpipe.stages.judged_examples import write_examples
from kdpipe.stages.macs import count_macs, count_parameters
from kdpipe.stages.memory_format import channels_last
from kdpipe.stages.outside import outside_digests, outside_sets
from kdpipe.stages.stage import Context, Inputs

VERSION = 1
TOOLS = ("torch", "numpy", "pillow", "safetensors")

SCORECARD_FILE = "scorecard.json"
CORRECT_FILE = "correct.npz"
SAMPLES_DIGEST = "digest/samples"
GRADED = ("confidence", "nll", "brier")
"""what correct.npz holds of each clean answer beside whether it is right"""
CRAFTING_FOLDER = "crafting"
"""Finished batches of attacks, in the step's work folder while it runs."""

_AT = "[evaluate] attacks"
_DECISION_SAMPLES = 50
_DEFAULT_EPSILON = {"linf": 8 / 255, "l2": 0.5}


class EvaluateConfig(BaseModel, extra="forbid", frozen=True):
    """`[evaluate]`: what every model of the build is asked, on the same test samples."""

    attacks: tuple[str, ...] = Field(("fgsm", "pgd-20"), description="<method>-<steps>x<restarts>: fgsm, pgd-20, pgd-10x5, square-500")
    norm: Threat = Field("linf", description="the ball of the attacks; absent: that of [distill.attack]")
    epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="its radius in the input's value range; absent: that of [distill.attack], else 8/255 (l2: 0.5)"
    )
    attack_samples: int = Field(1000, ge=1, description="test samples that are attacked, stratified, the same for all models; all where there are fewer")
    corruptions: str | tuple[str, ...] = Field(
        "standard",
        description="names of corruptions, or a set: 'standard' (six), 'common' (the 15 of CIFAR-10-C), 'extra' (its four more), "
        "or a folder of files in the format of CIFAR-10-C, written with a slash: './CIFAR-10-C'; [] for none",
    )
    corruption_samples: int = Field(1000, ge=1, description="test samples that are corrupted, each at five severities")
    epsilon_curve: tuple[float, ...] = Field((0.5, 1.0, 2.0), description="where accuracy against epsilon is drawn, in multiples of epsilon; [] for no curve")
    curve_samples: int = Field(250, ge=1, description="attacked samples that the curve is drawn on")
    square_queries: int = Field(100, ge=0, description="queries of the black-box attack for each sample; 0: none")
    square_samples: int = Field(200, ge=1, description="attacked samples for the black-box attack and the masking checks")
    decision_queries: int | None = Field(
        None, ge=0, description="queries of the attack that asks files for their class alone (rays, for l2 hopskipjump), for each sample; absent or 0: none"
    )
    decision_samples: int | None = Field(None, ge=1, description="samples of the black-box attack that it is run on; absent: 50")
    ood: str | tuple[str, ...] | None = Field(
        None,
        description="sets that the model was never made for, to see whether its confidence tells them apart: "
        "'uniform-noise', 'gaussian-noise', 'inverted', 'shuffled-pixels', or data of the same sample shape as in [task] data; absent: not asked",
    )
    masking: bool = Field(True, description="check whether the attacks are to be believed")
    batch_size: int = Field(256, ge=1, description="samples at a time")
    subject: Literal["teacher", "student", "pruned", "twin"] | None = Field(None, description="the model under judgement; the pipeline fills it in")

    @field_validator("attacks")
    @classmethod
    def _known_attacks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                parse_attack(name, norm="linf", epsilon=1.0, at=_AT)
            except ConfigError as error:
                raise ValueError(f"{error.problems[0].message}; {error.problems[0].do}") from error
        return _without_repetition(names)

    @field_validator("corruptions")
    @classmethod
    def _known_corruptions(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(names, str):
            if names not in SETS and not _is_folder(names):
                raise ValueError(f"{names!r} is no set of corruptions: {', '.join(SETS)}; a folder of files is written with a slash, names in brackets")
            return names
        for name in names:
            base, _, severity = name.rpartition("-")
            if severity.isdigit() and base:
                raise ValueError(f"{name!r} names a severity: every corruption is judged at all five, 1 (weak) to 5 (strong); write {base!r}")
            try:
                corruption_named(name)
            except ConfigError as error:
                raise ValueError(f"{error.problems[0].message}; {error.problems[0].do}") from error
        return _without_repetition(names)

    @field_validator("ood")
    @classmethod
    def _one_or_several(cls, names: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if not names else _without_repetition((names,) if isinstance(names, str) else names)

    @field_validator("epsilon_curve")
    @classmethod
    def _rising_multiples(cls, multiples: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= multiple <= 1000 for multiple in multiples):
            raise ValueError("multiples of epsilon lie in [0, 1000]")
        return tuple(sorted(set(multiples) - {0.0}))

    @model_validator(mode="after")
    def _epsilon_fits_the_norm(self) -> Self:
        if self.norm == "linf" and self.epsilon is not None and self.epsilon > 1:
            raise ValueError(f"epsilon = {self.epsilon:g} is not in (0, 1] for linf; 8/255 is 0.0314")
        return self

    def content(self, project: Path) -> dict[str, str]:
        """For the fingerprint: what the corrupted files and the data of `ood` hold; ConfigError where they cannot be read."""
        files = {"corruptions": files_digest(project / self.corruptions)} if isinstance(self.corruptions, str) and _is_folder(self.corruptions) else {}
        return files | {f"ood/{name}": digest for name, digest in outside_digests(self.outside, project).items()}

    @property
    def outside(self) -> tuple[str, ...]:
        """The sets of `ood`."""
        return () if self.ood is None else (self.ood,) if isinstance(self.ood, str) else self.ood

    @property
    def strength(self) -> float:
        """The epsilon in use."""
        return _DEFAULT_EPSILON[self.norm] if self.epsilon is None else self.epsilon

    def methods(self) -> dict[str, AttackMethod]:
        """The attacks by name, in the configured order."""
        return {name: parse_attack(name, norm=self.norm, epsilon=self.strength, at=_AT) for name in self.attacks}

    def black_box(self) -> dict[str, AttackMethod]:
        """The black-box attack that every model meets beside them, by name; empty where it is switched off."""
        return {f"square-{self.square_queries}": Square(norm=self.norm, epsilon=self.strength, steps=self.square_queries)} if self.square_queries else {}

    def decision(self) -> dict[str, AttackMethod]:
        """The attack that files meet beside it, which is told no logits, by name; empty where it is not asked for."""
        if not self.decision_queries:
            return {}
        name = f"{'rays' if self.norm == 'linf' else 'hopskipjump'}-{self.decision_queries}"
        return {name: parse_attack(name, norm=self.norm, epsilon=self.strength, at="[evaluate] decision_queries")}

    def curve(self) -> tuple[float, ...]:
        """The epsilons of the curve, rising; for linf those above 1 all mean the same and are left out."""
        return tuple(self.strength * multiple for multiple in self.epsilon_curve if self.norm == "l2" or self.strength * multiple <= 1)


def questions_of(samples: Samples, config: EvaluateConfig, seed: int, project: Path = Path()) -> Questions:
    """The samples that every model is asked: nested stratified draws of the split, by the project's seed. `project`: where relative paths start."""
    files = None
    if isinstance(config.corruptions, str) and _is_folder(config.corruptions):
        files = corruption_files(project / config.corruptions, samples)
    corrupted = stratified(samples.labels, config.corruption_samples, seed=seed)
    return Questions(
        attacked=stratified(samples.labels, config.attack_samples, seed=seed),
        curve=stratified(samples.labels, min(config.curve_samples, config.attack_samples), seed=seed),
        black_box=stratified(samples.labels, min(config.square_samples, config.attack_samples), seed=seed),
        corrupted=corrupted,
        corruptions=_corruptions(config, samples) if files is None else files.names,
        batch_size=config.batch_size,
        seed=seed,
        files=files,
        outside=outside_sets(config.outside, samples, corrupted, project=project, seed=seed),
    )


def decision_indices(samples: Samples, config: EvaluateConfig, seed: int) -> Int64Array:
    """Those of the black-box attack's samples that the decision-based one is run on."""
    most = min(config.decision_samples or _DECISION_SAMPLES, config.square_samples, config.attack_samples)
    return stratified(samples.labels, most, seed=seed)


def run(inputs: Inputs, config: EvaluateConfig, context: Context) -> Path:
    """The artifact folder with the scorecard, the adversarial samples and the per-sample answers of the network in `inputs.artifacts["subject"]`."""
    subject = config.subject or "student"
    folder, samples = inputs.artifacts["subject"], inputs.data.test
    network = load_network(folder)
    questions = questions_of(samples, config, context.seed, context.project)
    work = work_of(context)
    with quiet(network.module), channels_last(network.module):
        judgement, replays, curve = network_judged(network, described(network, folder, subject), samples, questions, config, work)
        write_examples(context.folder, TorchPredictor(network.module), samples, questions, strongest_of(replays))
    write_text(context.folder / SCORECARD_FILE, judgement.scorecard.model_dump_json(indent=2) + "\n")
    write_adversarial(context.folder, replays, curve)
    write_correct(context.folder, {"": judgement}, questions)
    finish(work)
    context.progress.say(summary(judgement.scorecard.model, judgement))
    return context.folder


def network_judged(
    network: Network, subject: Subject, samples: Samples, questions: Questions, config: EvaluateConfig, work: Work = ALONE
) -> tuple[Judgement, list[Replay], tuple[CurvePoint, ...]]:
    """The judgement of a network that is held still, with the masking checks, and the adversarial samples that were made for it."""
    predictor = TorchPredictor(network.module)
    replays = list(_attacks(network, subject.model, samples, questions, config, work))
    curve = curve_on(network.module, samples, questions, config, work)
    judgement = judge(predictor, samples, questions, subject, replays=replays, curve=curve)
    if config.masking and replays:
        checks = checks_of_network(network.module, predictor, samples, questions, judgement, replays)
        judgement = replace(judgement, scorecard=judgement.scorecard.model_copy(update={"masking": checks}))
    return judgement, replays, curve


def work_of(context: Context) -> Work:
    """How a score step's attacks are watched, and where their finished batches lie until the step is done."""
    return Work(context.progress, KeptBatches(context.folder / CRAFTING_FOLDER))


def finish(work: Work) -> None:
    """Drop the finished batches: what they were for is written."""
    if work.kept is not None:
        work.kept.remove()


def attacks_on(
    logits_of: Logits,
    crafted_on: str,
    samples: Samples,
    questions: Questions,
    methods: Mapping[str, AttackMethod],
    *,
    with_rescaled: bool,
    work: Work = ALONE,
) -> Iterator[Replay]:
    """The configured attacks on one network, one after the other; `with_rescaled`: those of many steps once more on rescaled logits."""

    def made(method: AttackMethod, name: str, asked: Logits, on: str) -> Replay:
        seed, batch_size = questions.seed, questions.batch_size
        return craft(method, name, asked, samples, questions.attacked, crafted_on=on, seed=seed, batch_size=batch_size, work=work)

    for name, method in methods.items():
        yield made(method, name, logits_of, crafted_on)
    for name, method in methods.items():
        if with_rescaled and method.needs_gradients and method.steps > 1:
            scaled = rescaled(logits_of, samples, questions.attacked, batch_size=questions.batch_size)
            yield made(method, name, scaled, f"{crafted_on} (rescaled logits)")


def curve_on(logits_of: Logits, samples: Samples, questions: Questions, config: EvaluateConfig, work: Work = ALONE) -> tuple[CurvePoint, ...]:
    """The samples of the epsilon curve on one network; none where nothing is attacked."""
    if not config.attacks:
        return ()
    seed, batch_size = questions.seed, questions.batch_size
    return craft_curve(logits_of, samples, questions.curve, config.curve(), norm=config.norm, seed=seed, batch_size=batch_size, work=work)


def strongest_of(replays: Sequence[Replay]) -> Replay | None:
    """The replay with the most gradient steps, the first of them; None where there is none."""
    return strongest((replay for replay in replays if replay.method.needs_gradients), lambda replay: replay.method)


def write_correct(folder: Path, judgements: dict[str, Judgement], questions: Questions) -> None:
    """correct.npz: of every judgement under its prefix the bool arrays, and what calibration needs of the clean answers (float32).

    Beside them the indices of the samples that were asked, and the sha256 of the split (uint8): what a comparison must find equal.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"indices/attack": questions.attacked, "indices/black-box": questions.black_box}
    arrays["indices/corruption"] = questions.corrupted
    for prefix, judgement in judgements.items():
        arrays |= {f"{prefix}{name}": right for name, right in judgement.correct.items()}
        arrays |= {f"{prefix}{name}": getattr(judgement.answers, name).astype(np.float32) for name in GRADED}
        arrays[SAMPLES_DIGEST] = np.frombuffer(judgement.samples_digest, dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes any keyword for its own flag
    write_bytes(folder / CORRECT_FILE, buffer.getvalue())


def summary(model: str, judgement: Judgement) -> str:
    """One line for the user."""
    card = judgement.scorecard
    figures = (("clean", card.clean), ("robust", card.robust), ("corrupted", card.corruption_mean))
    return f"{model}: " + ", ".join(f"{name} {figure.value:.1f} %" for name, figure in figures if figure.value is not None)


def _attacks(network: Network, subject: str, samples: Samples, questions: Questions, config: EvaluateConfig, work: Work) -> Iterator[Replay]:
    if not config.attacks:
        return
    module = network.module
    yield from attacks_on(module, subject, samples, questions, config.methods(), with_rescaled=subject == "twin", work=work)
    seed, batch_size = questions.seed, questions.batch_size
    for name, method in config.black_box().items():
        yield craft(method, name, module, samples, questions.black_box, crafted_on=subject, seed=seed, batch_size=batch_size, work=work)


def described(network: Network, folder: Path, subject: str) -> Subject:
    """What a scorecard says of the network itself; `folder` holds its weights."""
    spec = network.spec
    # a twin's layers are the engine's own, with constants for weights: it costs what the network costs that it stands for
    counted = network if spec.quantization is None else build_network(spec.model_copy(update={"quantization": None}), stream(0, "score/count"))
    return Subject(
        model=subject,
        form="twin" if subject == "twin" else "network",
        size_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        parameters=count_parameters(counted.module),
        macs=count_macs(counted.module, spec.contract.shape),
    )


def _corruptions(config: EvaluateConfig, samples: Samples) -> tuple[str, ...]:
    if not isinstance(config.corruptions, str):
        return config.corruptions
    return suiting(SETS[config.corruptions], samples.read(np.zeros(1, dtype=np.int64)).shape[1])


def _is_folder(corruptions: str) -> bool:
    return "/" in corruptions or "\\" in corruptions


def _without_repetition(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
