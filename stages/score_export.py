"""Judges the files of an export in each of the target's runtimes: the int8 file, and post-training quantization beside it.

A file has no gradients. What it stands is the per-sample worst of the attacks crafted on its twin, on the float networks it came from,
replayed on the file in its runtime, and of a black-box search on the file itself that starts from the best of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import write_json
from kdpipe.foundation.networks import load_network
from kdpipe.foundation.predictor import Float32Array, Predictor, TorchPredictor
from kdpipe.robustness.attacks.method import Strongest, asked, margins
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import CurvePoint, Replay, Work, craft
from kdpipe.robustness.evaluation import Judgement, Questions, Subject, judge
from kdpipe.robustness.masking import checks_of_file
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.stages.adversarial_files import read_adversarial
from kdpipe.stages.judged_examples import write_examples
from kdpipe.stages.score import EvaluateConfig, attacks_on, curve_on, finish, questions_of, strongest_of, summary, work_of, write_correct
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets.runtimes.runtime import Session, open_session

VERSION = 1
TOOLS = ("torch", "numpy", "pillow", "safetensors", "onnxruntime", "openvino")

SCORECARDS_FILE = "scorecards.json"
UNAVAILABLE_FILE = "unavailable.json"

_SOURCES = {"score-qat": "twin", "score-prune": "pruned", "score-distill": "student", "score-teacher": "teacher"}
"""score step to the model that its adversarial samples were made on; the nearest to the file first"""


@dataclass(frozen=True)
class File:
    """One file to judge. `twin`: the network that it was made from; `replays`, `curve`: the adversarial samples it has to stand."""

    model: str
    path: Path
    twin: nn.Module
    replays: Sequence[Replay]
    curve: Sequence[CurvePoint]


def run(inputs: Inputs, config: EvaluateConfig, context: Context) -> Path:
    """The artifact folder with `scorecards.json` (int8 and ptq, for each runtime that is here), the per-sample answers and example samples.

    `unavailable.json`: runtime to the reason why the files were not judged in it. Raises UnavailableError when there is none at all.
    """
    assert inputs.profile is not None, "an export belongs to a target"
    samples = inputs.data.test
    questions = questions_of(samples, config, context.seed, context.project)
    work = work_of(context)
    files = _files(inputs, config, questions, work)
    judgements: dict[str, Judgement] = {}
    unavailable: dict[str, UnavailableError] = {}
    for need in inputs.profile.runtimes:
        for file in context.progress(files, f"score {need.name}", total=len(files), unit="file"):
            try:
                session = open_session(need.name, file.path, threads=context.threads, versions=need.versions)
            except UnavailableError as error:
                unavailable[need.name] = error
                break
            with session:
                judgement = _judged(session, file, samples, questions, config, work.of(f"{file.model}/{session.name}"))
                if not judgements and file.model == "int8":
                    write_examples(context.folder, session, samples, questions, strongest_of(file.replays))
            judgements[f"{file.model}/{session.name}/"] = judgement
            context.progress.say(summary(f"{file.model} in {session.name}", judgement))
    if not judgements:
        raise UnavailableError.gather([problem for error in unavailable.values() for problem in error.problems])
    write_json(context.folder / SCORECARDS_FILE, [judgement.scorecard.model_dump(mode="json") for judgement in judgements.values()])
    write_json(context.folder / UNAVAILABLE_FILE, {name: error.problems[0].message for name, error in unavailable.items()})
    write_correct(context.folder, judgements, questions)
    finish(work)
    return context.folder


def _files(inputs: Inputs, config: EvaluateConfig, questions: Questions, work: Work) -> list[File]:
    """The int8 file and, where the export has one, that of post-training quantization: with attacks on its own twin, made here."""
    export, artifacts = inputs.artifacts["export"], inputs.artifacts
    steps = {step: model for step, model in _SOURCES.items() if step in artifacts and config.attacks}
    methods, classes = config.methods(), len(inputs.data.classes)
    found = {model: read_adversarial(artifacts[step], methods, questions, model, classes=classes) for step, model in steps.items()}
    replays = [replay for own, _ in found.values() for replay in own]
    curve = next((own for _, own in found.values()), [])
    files = [File("int8", export / "model.onnx", load_network(artifacts["qat"]).module, replays, curve)]
    if (export / "ptq.onnx").is_file():
        samples, twin = inputs.data.test, load_network(artifacts["qat"] / "ptq").module
        with quiet(twin):
            own = list(attacks_on(twin, "ptq twin", samples, questions, methods, with_rescaled=True, work=work))
            own_curve = curve_on(twin, samples, questions, config, work)
        files.append(File("ptq", export / "ptq.onnx", twin, own + replays, own_curve))
    return files


def _judged(session: Session, file: File, samples: Samples, questions: Questions, config: EvaluateConfig, work: Work) -> Judgement:
    subject = Subject(model=file.model, form="file", runtime=session.name, size_bytes=file.path.stat().st_size)
    replays = list(file.replays)
    if replays:
        for name, method in config.black_box().items():
            start = _strongest_replayed(session, replays, samples.labels, questions)
            replays.append(
                craft(
                    method,
                    name,
                    asked(session),
                    samples,
                    questions.black_box,
                    crafted_on="file",
                    seed=questions.seed,
                    batch_size=questions.batch_size,
                    start=start,
                    work=work,
                )
            )
    judgement = judge(session, samples, questions, subject, replays=replays, curve=file.curve)
    if not (config.masking and replays):
        return judgement
    checks = checks_of_file(session, TorchPredictor(file.twin), samples, questions, judgement, replays)
    return Judgement(judgement.scorecard.model_copy(update={"masking": checks}), judgement.correct, judgement.survived)


def _strongest_replayed(predictor: Predictor, replays: Sequence[Replay], labels: Int64Array, questions: Questions) -> Float32Array:
    """For each black-box sample the replayed version that brings the file nearest to an error, or furthest into it."""
    logits_of, own = asked(predictor), torch.from_numpy(labels[questions.black_box])
    versions = [torch.from_numpy(replay.x_adv[np.searchsorted(replay.indices, questions.black_box)]) for replay in replays]
    strongest = Strongest(versions[0])
    for x_adv in versions:
        strongest.offer(x_adv, margins(logits_of(x_adv), own))
    found: Float32Array = strongest.x_adv.numpy()
    return found
