"""Judges the files of an export in each of the target's runtimes: the int8 file, and post-training quantization beside it.

The adversarial samples that a file has to stand were crafted on its twin and on the float networks that it came from; what follows, `file_judgement` does.
"""

from pathlib import Path

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import write_json
from kdpipe.foundation.networks import load_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.crafting import Work
from kdpipe.robustness.evaluation import Judgement, Questions
from kdpipe.stages.adversarial_files import read_adversarial
from kdpipe.stages.export import temperature_of
from kdpipe.stages.file_judgement import File, file_judged
from kdpipe.stages.judged_examples import write_examples
from kdpipe.stages.score import EvaluateConfig, attacks_on, curve_on, finish, questions_of, strongest_of, summary, work_of, write_correct
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets.runtimes.runtime import open_session

VERSION = 1
TOOLS = ("torch", "numpy", "pillow", "safetensors", "onnxruntime", "openvino")

SCORECARDS_FILE = "scorecards.json"
UNAVAILABLE_FILE = "unavailable.json"

_SOURCES = {"score-qat": "twin", "score-prune": "pruned", "score-distill": "student", "score-teacher": "teacher"}
"""score step to the model that its adversarial samples were made on; the nearest to the file first"""


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
                judgement = file_judged(session, session.name, file, samples, questions, config, work.of(f"{file.model}/{session.name}"))
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
    files = [File("int8", export / "model.onnx", TorchPredictor(load_network(artifacts["qat"]).module), replays, curve, temperature_of(export))]
    if (export / "ptq.onnx").is_file():
        samples, twin = inputs.data.test, load_network(artifacts["qat"] / "ptq").module
        with quiet(twin):
            own = list(attacks_on(twin, "ptq twin", samples, questions, methods, with_rescaled=True, work=work))
            own_curve = curve_on(twin, samples, questions, config, work)
        files.append(File("ptq", export / "ptq.onnx", TorchPredictor(twin), own + replays, own_curve))
    return files
