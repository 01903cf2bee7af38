"""`kdpipe eval`: the scorecard of a bundle, of a network's folder, or of any ONNX classifier with a contract.

A network is attacked through its own gradients. A bundle is attacked as its build attacked it, on the twin and the float networks in the project's store,
where that is at hand. Of any other file a differentiable twin is made and held against the file first; where that fails, surrogates lend their gradients;
where there are none, the file is only searched. Which it was stands in the result, beside what was not measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import nn

from kdpipe.foundation.errors import ConfigError, KdpipeError, UnavailableError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.networks import SPEC_FILE, WEIGHTS_FILE, Network, load_network
from kdpipe.foundation.onnx_file import read_onnx
from kdpipe.foundation.onnx_twin.twin import OnnxTwin, agreement
from kdpipe.foundation.predictor import Predictor, TorchPredictor
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.evaluation_basis import Asked, Basis, basis_of
from kdpipe.pipeline.file_contract import AdaptedPredictor, AdaptedTwin, adapter_for, read_file_contract, require_same_classes
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.report.scorecard_sheet import write_scorecard_sheet
from kdpipe.pipeline.runner import torch_settings
from kdpipe.pipeline.store import Artifact, Store
from kdpipe.pipeline.user_code import importable
from kdpipe.pipeline.variants import for_this_machine
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import CurvePoint, Replay, Work
from kdpipe.robustness.evaluation import Questions
from kdpipe.robustness.kept_batches import KeptBatches
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages.adversarial_files import read_adversarial
from kdpipe.stages.file_judgement import File, file_judged
from kdpipe.stages.memory_format import channels_last
from kdpipe.stages.score import EvaluateConfig, attacks_on, curve_on, described, network_judged, questions_of, summary
from kdpipe.targets.runtimes.runtime import open_session

if TYPE_CHECKING:
    from kdpipe.stages.stage import Progress

DECISION_QUERIES = 500
"""of the attack on files that is told the class alone"""

NO_GRADIENTS = "no gradients: black-box only; figures are upper bounds"

_MODELS = {"qat": "twin", "prune": "pruned", "distill": "student", "teacher": "teacher"}
"""step to the model that it leaves; the nearest to the file first, as the build replays them"""

_COMPARED = 256  # samples on which a file's twin is held against it, clean and with noise


class Gap(BaseModel, extra="forbid", frozen=True):
    """What was not measured, and why."""

    what: str
    reason: str


class Evaluation(BaseModel, extra="forbid", frozen=True):
    """One model, judged: `kdpipe eval --json`."""

    subject: str
    kind: Literal["bundle", "network", "file"]
    sha256: str = Field(description="of the model file, or of the network's weights")
    data: str = Field(description="name of the data set; its test split is judged")
    data_digest: str
    n: int = Field(description="samples of the split")
    settings: EvaluateConfig
    seed: int
    threads: int
    gradients: str = Field(description="whose gradients the attacks followed, and how that was checked")
    scorecards: tuple[Scorecard, ...] = Field(description="one for each runtime")
    not_measured: tuple[Gap, ...]

    @property
    def doubtful(self) -> bool:
        """Whether a masking check failed: the robust accuracy beside it is then an upper bound and no more."""
        return any(check.passed is False for card in self.scorecards for check in card.masking)


@dataclass(frozen=True)
class _Evidence:
    """What a file has to stand. `twin`: the network that answers as it does; `gradients`: where the samples come from, in words."""

    replays: Sequence[Replay]
    curve: Sequence[CurvePoint]
    twin: Predictor | None
    gradients: str
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class _Task:
    """One evaluation as it runs."""

    subject: Path
    basis: Basis
    questions: Questions
    work: Work
    progress: "Progress"

    @property
    def config(self) -> EvaluateConfig:
        return self.basis.config


def evaluate(
    subject: Path | str,
    *,
    asked: Asked | None = None,
    contract: Path | None = None,
    runtimes: Sequence[str] = (),
    surrogates: Sequence[Path] = (),
    resume: Path | None = None,
    report: Path | None = None,
    progress: "Progress | None" = None,
) -> Evaluation:
    """The scorecards of `subject`: a bundle's folder, a folder with network.json, or an .onnx file. Of a bundle of variants: of the one for this machine.

    `asked`: data and settings that differ from the bundle's or the project's own; of a file, 500 queries of the decision-based attack unless it says
    otherwise. `contract`: of a file, where none lies beside it. `runtimes`: where a file is run; none: the target's, for other files onnxruntime.
    `surrogates`: folders of networks that lend their gradients where a file has no differentiable twin. `resume`: a folder in which finished batches of
    attacks are kept until all is done; the same call goes on from there. Of a subject in a project it is in the project's work folder. `report`: an HTML
    file to write.

    Raises ConfigError (no such subject, data or contract that do not fit), VerificationError (it does not load or does not answer),
    UnavailableError (no runtime).
    """
    listener = progress or SilentProgress()
    path, which = for_this_machine(Path(subject))
    if which is not None:
        listener.say(which)
    kind = _kind(path)
    wanted = asked or Asked()
    if kind != "network" and wanted.decision_queries is None:
        wanted = replace(wanted, decision_queries=DECISION_QUERIES)
    with ExitStack() as stack:
        for place in filter(None, (wanted.project, Path.cwd())):
            stack.enter_context(importable(place.resolve()))
        basis = basis_of(path, wanted)
        if basis.project is not None:
            stack.enter_context(importable(basis.project))
        stack.enter_context(torch_settings(basis.threads))
        questions = questions_of(basis.data.test, basis.config, basis.seed, basis.project or Path())
        model = path / WEIGHTS_FILE if kind == "network" else path / "model.onnx" if kind == "bundle" else path
        digest = sha256_of(model)
        kept = _kept(basis, digest, resume)
        task = _Task(path, basis, questions, Work(listener, kept), listener)
        if kind == "network":
            gradients, cards, gaps = _network(task)
        else:
            gradients, cards, gaps = _file(task, model, contract, runtimes, surrogates, bundled=kind == "bundle")
        if kept is not None:
            kept.remove()
    result = Evaluation(
        subject=str(path),
        kind=kind,
        sha256=digest,
        data=basis.data.name,
        data_digest=basis.data.digest,
        n=len(basis.data.test),
        settings=basis.config,
        seed=basis.seed,
        threads=basis.threads,
        gradients=gradients,
        scorecards=tuple(cards),
        not_measured=(*gaps, *_gaps_of(basis, kind)),
    )
    if report is not None:
        write_scorecard_sheet(report, result)
    return result


def _kind(path: Path) -> Literal["bundle", "network", "file"]:
    if path.is_dir():
        if (path / MANIFEST_FILE).is_file():
            return "bundle"
        if (path / SPEC_FILE).is_file():
            return "network"
        raise ConfigError(
            "neither a bundle nor a network here", at=path, do=f"name a folder with {MANIFEST_FILE}, one with {SPEC_FILE} and {WEIGHTS_FILE}, or an .onnx file"
        )
    if not path.is_file():
        raise ConfigError("no such file or folder", at=path, do="name a bundle, a network's folder or an .onnx file")
    if path.suffix != ".onnx":
        raise ConfigError(f"a {path.suffix or 'nameless'} file cannot be judged", at=path, do="export it to ONNX, or name a bundle or a network's folder")
    return "file"


def _kept(basis: Basis, digest: str, resume: Path | None) -> KeptBatches | None:
    identity = f"{digest}/{basis.data.digest}/{basis.threads}"
    if resume is not None:
        return KeptBatches(resume, identity)
    if basis.project is None:
        return None
    return KeptBatches(Store(basis.project).work_folder / f"eval-{digest[:16]}", identity)


def _network(task: _Task) -> tuple[str, list[Scorecard], list[Gap]]:
    """A network's own scorecard; one that cuts its graph is searched as a file is."""
    basis, folder = task.basis, task.subject
    network = load_network(folder)
    spec = network.spec.contract
    if spec.shape != basis.data.shape:
        raise ConfigError(
            f"the network takes samples of shape {spec.shape}, the data's are {basis.data.shape}", at=folder, do="evaluate it on data of its shape"
        )
    require_same_classes(spec.labels, basis.data.classes, folder)
    name = _name_of(folder, network, basis)
    subject = described(network, folder, name)
    with quiet(network.module), channels_last(network.module):
        if basis.config.attacks and not _has_gradients(network.module, task):
            predictor = TorchPredictor(network.module)
            file = File(name, folder / WEIGHTS_FILE, None, (), ())
            judgement = file_judged(predictor, "torch", file, basis.data.test, task.questions, basis.config, task.work)
            task.progress.say(f"{NO_GRADIENTS}. {summary(name, judgement)}")
            card = judgement.scorecard.model_copy(
                update={"form": subject.form, "runtime": None, "parameters": subject.parameters, "macs": subject.macs, "size_bytes": subject.size_bytes}
            )
            return NO_GRADIENTS, [card], [_no_white_box(basis.config, "the network's answers do not depend differentiably on its input")]
        judgement, _, _ = network_judged(network, subject, basis.data.test, task.questions, basis.config, task.work)
    task.progress.say(summary(name, judgement))
    return "the network's own", [judgement.scorecard], []


def _file(
    task: _Task, model: Path, contract: Path | None, runtimes: Sequence[str], surrogates: Sequence[Path], *, bundled: bool
) -> tuple[str, list[Scorecard], list[Gap]]:
    """A file's scorecard in each runtime that is here."""
    basis = task.basis
    graph = read_onnx(model.read_bytes(), at=str(model))
    written = read_file_contract(model, graph, contract, basis.data.classes)
    require_same_classes(written.labels, basis.data.classes, contract or model.with_name("contract.json"))
    adapter = adapter_for(written, graph, basis.data.shape, model)
    needs = basis.bundle.runtimes if bundled and basis.bundle else {"onnxruntime": ""}
    wanted = {name: needs.get(name, "") for name in runtimes} or needs
    name = "int8" if any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in graph.graph.node) else "float"
    evidence: _Evidence | None = None
    cards: list[Scorecard] = []
    gaps: list[Gap] = []
    problems: list[UnavailableError] = []
    for runtime, versions in wanted.items():
        try:
            session = open_session(runtime, model, threads=basis.threads, versions=versions)
        except UnavailableError as error:
            problems.append(error)
            gaps.append(Gap(what=f"the file in {runtime}", reason=error.problems[0].message))
            continue
        with session:
            predictor: Predictor = session if adapter.changes_nothing and bundled else AdaptedPredictor(session, adapter)
            _require_logits(predictor, task, len(written.labels), model)
            if evidence is None:
                stored = _from_store(task) if bundled else None
                evidence = stored or _from_graph(
                    task, lambda: AdaptedTwin(OnnxTwin(graph, at=str(model)), adapter), predictor, surrogates, quantized=name == "int8"
                )
            file = File(name, model, evidence.twin, evidence.replays, evidence.curve)
            judgement = file_judged(predictor, session.name, file, basis.data.test, task.questions, basis.config, task.work.of(f"{name}/{session.name}"))
            task.progress.say(summary(f"{name} in {session.name}", judgement))
            cards.append(judgement.scorecard)
    if evidence is None:
        raise UnavailableError.gather([problem for error in problems for problem in error.problems])
    return evidence.gradients, cards, [*gaps, *evidence.gaps]


def _require_logits(predictor: Predictor, task: _Task, classes: int, model: Path) -> None:
    x = task.basis.data.test.read(np.arange(1))
    answers = predictor(x)
    if answers.shape != (1, classes):
        raise ConfigError(
            f"the file answers {answers.shape} to one sample, its contract has {classes} labels: (1, {classes}) is expected",
            at=model,
            do="mend the labels of the contract, or export the network with one output of logits",
        )


def _from_store(task: _Task) -> _Evidence | None:
    """The adversarial samples of the build's own networks, as the build replays them; None where the store no longer holds its twin."""
    basis, bundle = task.basis, task.basis.bundle
    if basis.project is None or bundle is None:
        return None
    store = Store(basis.project)
    found: dict[str, Artifact | None] = {}
    for step in _MODELS:
        fingerprint = bundle.steps.get(f"qat@{bundle.target}" if step == "qat" else step)
        found[step] = store.find(fingerprint) if fingerprint and store.damage(fingerprint, thorough=True) is None else None
    if found["qat"] is None:
        return None
    replays: list[Replay] = []
    curve: Sequence[CurvePoint] = ()
    gaps = []
    for step, model in _MODELS.items():
        artifact = found[step]
        if artifact is None:
            if step in bundle.steps:
                gaps.append(Gap(what=f"attacks from the {model}", reason="the project's store no longer holds it"))
            continue
        network = load_network(artifact.folder)
        known, known_curve = _already_made(task, store, step, model)
        with quiet(network.module), channels_last(network.module):
            own = attacks_on(
                network.module,
                model,
                basis.data.test,
                task.questions,
                {name: method for name, method in basis.config.methods().items() if name not in known},
                with_rescaled=model == "twin",
                work=task.work.of(artifact.record.fingerprint),
            )
            made = [*(replay for replays in known.values() for replay in replays), *own]
            if model == "twin":
                curve = known_curve or curve_on(network.module, basis.data.test, task.questions, basis.config, task.work.of(artifact.record.fingerprint))
        replays += _in_order(made, basis.config)
    twin = TorchPredictor(load_network(_there(found["qat"]).folder).module)
    told = ", ".join(model for step, model in _MODELS.items() if found[step] is not None)
    return _Evidence(replays, curve, twin, f"replayed from the build's own networks in the project's store: {told}", tuple(gaps))


def _already_made(task: _Task, store: Store, step: str, model: str) -> tuple[Mapping[str, list[Replay]], Sequence[CurvePoint]]:
    """What the build's score step left of the attacks asked for, by name, where it asked the same samples with the same epsilon; and its curve."""
    basis, bundle = task.basis, task.basis.bundle
    assert bundle is not None
    fingerprint = bundle.steps.get(f"score-qat@{bundle.target}" if step == "qat" else f"score-{step}")
    artifact = store.find(fingerprint) if fingerprint and store.damage(fingerprint, thorough=True) is None else None
    if artifact is None:
        return {}, ()
    config = EvaluateConfig.model_validate(artifact.record.identity["config"])
    same = ("norm", "strength", "attack_samples", "batch_size")
    facts = (artifact.record.identity.get("data"), artifact.record.identity.get("seed"), artifact.record.identity.get("threads"))
    if any(getattr(config, key) != getattr(basis.config, key) for key in same) or facts != (basis.data.digest, basis.seed, basis.threads):
        return {}, ()
    if config.curve_samples != basis.config.curve_samples or config.curve() != basis.config.curve():
        return {}, ()
    replays, curve = read_adversarial(artifact.folder, basis.config.methods(), task.questions, model, classes=len(basis.data.classes))
    by_name: dict[str, list[Replay]] = {}
    for replay in replays:
        by_name.setdefault(replay.name, []).append(replay)
    return by_name, curve


def _in_order(replays: Sequence[Replay], config: EvaluateConfig) -> list[Replay]:
    order = list(config.attacks)
    return sorted(replays, key=lambda replay: order.index(replay.name))


def _from_graph(task: _Task, make_twin: Callable[[], nn.Module], predictor: Predictor, surrogates: Sequence[Path], *, quantized: bool) -> _Evidence:
    """Gradients of the file's own graph, if its twin answers as the file does; else of surrogates, if there are any; else none."""
    config, samples = task.config, task.basis.data.test
    if not config.attacks:
        return _Evidence((), (), None, "not needed: no attacks were asked for")
    reason, held = _held(task, make_twin, predictor)
    if held is not None:
        twin, told = held
        with quiet(twin):
            replays = list(attacks_on(twin, "twin", samples, task.questions, config.methods(), with_rescaled=quantized, work=task.work))
            curve = curve_on(twin, samples, task.questions, config, task.work)
        return _Evidence(replays, curve, TorchPredictor(twin), told)
    task.progress.say(reason)
    networks = list(_surrogates(task, surrogates))
    if not networks:
        return _Evidence((), (), None, NO_GRADIENTS, (_no_white_box(config, reason),))
    replays = []
    for name, network in networks:
        with quiet(network.module), channels_last(network.module):
            replays += attacks_on(network.module, name, samples, task.questions, config.methods(), with_rescaled=False, work=task.work)
    with quiet(networks[0][1].module):
        curve = curve_on(networks[0][1].module, samples, task.questions, config, task.work)
    told = f"transferred from {', '.join(name for name, _ in networks)}, beside black-box attacks; figures are upper bounds ({reason})"
    return _Evidence(replays, curve, None, told)


def _held(task: _Task, make_twin: Callable[[], nn.Module], predictor: Predictor) -> tuple[str, tuple[nn.Module, str] | None]:
    """The file's twin once it agreed with the file on clean samples and on noisy ones, with how well; or why there is none."""
    x = task.basis.data.test.read(task.questions.attacked[:_COMPARED])
    noise = numpy_stream(task.basis.seed, "eval/agreement").uniform(-1, 1, x.shape) * task.config.strength
    both = np.concatenate([x, np.clip(x + noise, 0, 1).astype(np.float32)])
    try:
        twin = make_twin().eval()
        found = agreement(twin, both, predictor(both))
    except KdpipeError as error:
        return f"the file has no differentiable twin: {error.problems[0].message}", None
    share = f"{100 * found.same_share:.1f} % equal classes on {found.n} clean and noisy samples"
    if not found.holds:
        return f"the differentiable twin of the file does not answer as the file does ({share}): it is not used", None
    if not _has_gradients(twin, task):
        return "the file's answers do not depend differentiably on its input", None
    return "", (twin, f"a differentiable twin of the file's graph, straight through rounding, held against the file first: {share}")


def _has_gradients(module: nn.Module, task: _Task) -> bool:
    """Whether any of the first attacked samples has a gradient that is not zero."""
    chosen = task.questions.attacked[: task.config.batch_size]
    x = torch.from_numpy(task.basis.data.test.read(chosen)).requires_grad_()
    with torch.enable_grad():
        logits = module(x)
        if not logits.requires_grad:
            return False
        loss = F.cross_entropy(logits / logits.detach().abs().amax().clamp_min(1), torch.from_numpy(task.basis.data.test.labels[chosen]), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x, materialize_grads=True)
    return bool((gradient != 0).any())


def _surrogates(task: _Task, given: Sequence[Path]) -> Iterator[tuple[str, Network]]:
    """Networks of the same shape and classes that lend their gradients: those that were named, else the newest teacher and student of the project."""
    folders = {f"surrogate {folder.name}": folder for folder in given}
    if not given and task.basis.project is not None:
        newest = {artifact.record.step: artifact for artifact in Store(task.basis.project).artifacts()}
        folders = {f"surrogate {_MODELS[step]}": newest[step].folder for step in ("distill", "teacher") if step in newest}
    for name, folder in folders.items():
        network = load_network(folder)
        contract, data = network.spec.contract, task.basis.data
        if (contract.shape, contract.labels) == (data.shape, data.classes):
            yield name, network
        elif given:
            raise ConfigError(
                f"the surrogate is for samples of {contract.shape} and {len(contract.labels)} classes, the data has {data.shape} and {len(data.classes)}",
                at=folder,
                do="name a network of the same data",
            )


def _name_of(folder: Path, network: Network, basis: Basis) -> str:
    """What the model is called: by the step that made it, where it lies in a project's store."""
    artifact = None
    if basis.project is not None and folder.resolve().parent == Store(basis.project).folder.resolve():
        artifact = Store(basis.project).find(folder.resolve().name)
    if artifact is not None:
        return _MODELS.get(artifact.record.step.partition("@")[0], "student")
    return "student" if network.spec.quantization is None else "twin"


def _no_white_box(config: EvaluateConfig, reason: str) -> Gap:
    return Gap(what=f"{', '.join(config.attacks)}: attacks that follow gradients", reason=reason)


def _gaps_of(basis: Basis, kind: str) -> list[Gap]:
    config = basis.config
    gaps = [] if config.attacks else [Gap(what="accuracy under attack", reason="no attacks were asked for")]
    gaps += [] if config.corruptions else [Gap(what="accuracy under corruption", reason="no corruptions were asked for")]
    if basis.bundle is not None and basis.bundle.data != basis.data.digest:
        gaps.append(Gap(what="the bundle's own test split", reason=f"it was judged on {basis.data.name} as it is here, which is not the data of its build"))
    return [*gaps, Gap(what="latency", reason="kdpipe eval measures quality; kdpipe build's bench measures time")]


def _there(artifact: Artifact | None) -> Artifact:
    assert artifact is not None, "looked up before"
    return artifact
