"""`kdpipe eval`: the scorecard of a bundle, of a network's folder, or of any ONNX classifier with a contract.

A network is attacked through its own gradients; what a file is attacked with is `file_attacks`. Whose gradients they were stands in the result, beside what
was not measured.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.networks import SPEC_FILE, WEIGHTS_FILE, Network, load_network
from kdpipe.foundation.onnx_file import read_onnx
from kdpipe.foundation.onnx_twin.twin import OnnxTwin
from kdpipe.foundation.predictor import Predictor, TorchPredictor
from kdpipe.pipeline.evaluation import Evaluation, Gap, Judging
from kdpipe.pipeline.evaluation_basis import Asked, Basis, basis_of
from kdpipe.pipeline.file_attacks import MODELS, NO_GRADIENTS, FileAttacks, attacks_from_graph, attacks_from_store, has_gradients, no_white_box
from kdpipe.pipeline.file_contract import AdaptedPredictor, AdaptedTwin, adapter_for, read_file_contract, require_same_classes
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.report.scorecard_sheet import write_scorecard_sheet
from kdpipe.pipeline.runner import torch_settings
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.user_code import importable
from kdpipe.pipeline.variants import for_this_machine
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import Work
from kdpipe.robustness.kept_batches import KeptBatches
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages.file_judgement import File, file_judged
from kdpipe.stages.memory_format import channels_last
from kdpipe.stages.score import described, network_judged, questions_of, summary
from kdpipe.targets.runtimes.runtime import open_session

if TYPE_CHECKING:
    from kdpipe.stages.stage import Progress

DECISION_QUERIES = 500
"""of the attack on files that is told the class alone"""


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
        judging = Judging(path, basis, questions, Work(listener, kept), listener)
        if kind == "network":
            gradients, cards, gaps = _network(judging)
        else:
            gradients, cards, gaps = _file(judging, model, contract, runtimes, surrogates, bundled=kind == "bundle")
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


def _network(judging: Judging) -> tuple[str, list[Scorecard], list[Gap]]:
    """A network's own scorecard; one that cuts its graph is searched as a file is."""
    basis, folder = judging.basis, judging.subject
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
        if basis.config.attacks and not has_gradients(network.module, judging):
            predictor = TorchPredictor(network.module)
            file = File(name, folder / WEIGHTS_FILE, None, (), ())
            judgement = file_judged(predictor, "torch", file, basis.data.test, judging.questions, basis.config, judging.work)
            judging.progress.say(f"{NO_GRADIENTS}. {summary(name, judgement)}")
            card = judgement.scorecard.model_copy(
                update={"form": subject.form, "runtime": None, "parameters": subject.parameters, "macs": subject.macs, "size_bytes": subject.size_bytes}
            )
            return NO_GRADIENTS, [card], [no_white_box(basis.config, "the network's answers do not depend differentiably on its input")]
        judgement, _, _ = network_judged(network, subject, basis.data.test, judging.questions, basis.config, judging.work)
    judging.progress.say(summary(name, judgement))
    return "the network's own", [judgement.scorecard], []


def _file(
    judging: Judging, model: Path, contract: Path | None, runtimes: Sequence[str], surrogates: Sequence[Path], *, bundled: bool
) -> tuple[str, list[Scorecard], list[Gap]]:
    """A file's scorecard in each runtime that is here."""
    basis = judging.basis
    graph = read_onnx(model.read_bytes(), at=str(model))
    written = read_file_contract(model, graph, contract, basis.data.classes)
    require_same_classes(written.labels, basis.data.classes, contract or model.with_name("contract.json"))
    adapter = adapter_for(written, graph, basis.data.shape, model)
    needs = basis.bundle.runtimes if bundled and basis.bundle else {"onnxruntime": ""}
    wanted = {name: needs.get(name, "") for name in runtimes} or needs
    name = "int8" if any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in graph.graph.node) else "float"
    attacks: FileAttacks | None = None
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
            _require_logits(predictor, judging, len(written.labels), model)
            if attacks is None:
                stored = attacks_from_store(judging) if bundled else None
                attacks = stored or attacks_from_graph(
                    judging, lambda: AdaptedTwin(OnnxTwin(graph, at=str(model)), adapter), predictor, surrogates, quantized=name == "int8"
                )
            file = File(name, model, attacks.twin, attacks.replays, attacks.curve)
            judgement = file_judged(predictor, session.name, file, basis.data.test, judging.questions, basis.config, judging.work.of(f"{name}/{session.name}"))
            judging.progress.say(summary(f"{name} in {session.name}", judgement))
            cards.append(judgement.scorecard)
    if attacks is None:
        raise UnavailableError.gather([problem for error in problems for problem in error.problems])
    return attacks.gradients, cards, [*gaps, *attacks.gaps]


def _require_logits(predictor: Predictor, judging: Judging, classes: int, model: Path) -> None:
    x = judging.basis.data.test.read(np.arange(1))
    answers = predictor(x)
    if answers.shape != (1, classes):
        raise ConfigError(
            f"the file answers {answers.shape} to one sample, its contract has {classes} labels: (1, {classes}) is expected",
            at=model,
            do="mend the labels of the contract, or export the network with one output of logits",
        )


def _name_of(folder: Path, network: Network, basis: Basis) -> str:
    """What the model is called: by the step that made it, where it lies in a project's store."""
    artifact = None
    if basis.project is not None and folder.resolve().parent == Store(basis.project).folder.resolve():
        artifact = Store(basis.project).find(folder.resolve().name)
    if artifact is not None:
        return MODELS.get(artifact.record.step.partition("@")[0], "student")
    return "student" if network.spec.quantization is None else "twin"


def _gaps_of(basis: Basis, kind: str) -> list[Gap]:
    config = basis.config
    gaps = [] if config.attacks else [Gap(what="accuracy under attack", reason="no attacks were asked for")]
    gaps += [] if config.corruptions else [Gap(what="accuracy under corruption", reason="no corruptions were asked for")]
    if basis.bundle is not None and basis.bundle.data != basis.data.digest:
        gaps.append(Gap(what="the bundle's own test split", reason=f"it was judged on {basis.data.name} as it is here, which is not the data of its build"))
    return [*gaps, Gap(what="latency", reason="kdpipe eval measures quality; kdpipe build's bench measures time")]
