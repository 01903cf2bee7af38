"""One table for a data set: every objective's student, pruned network and int8 files, clean, under attack, corrupted, and calibrated.

    KDPIPE_DATA=… python benchmarks/robust_table.py fashion-mnist
    KDPIPE_DATA=… python benchmarks/robust_table.py cifar10 --objectives rslad kd --only train

One project in `benchmarks/.work` is used for all objectives (`benchmarks/tables/<set>.toml`), so that they share the teacher. Three parts for each
objective: `train` (a build as far as the export), `attack` (clean, PGD-20, AutoAttack, Square on the files), `corrupt`. Whatever is finished is kept,
and a run that was stopped goes on with the next part. Leaves `benchmarks/results/tables/<set>/<objective>-<part>.json` and the per-sample answers
beside it (`.npz`), which paired comparisons need. `python benchmarks/results_page.py` makes the tables of them.
"""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.foundation.files import write_json, write_text
from kdpipe.foundation.networks import WEIGHTS_FILE, load_network
from kdpipe.foundation.predictor import Predictor, TorchPredictor
from kdpipe.pipeline import build
from kdpipe.pipeline.config import read_config
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.progress import progress_for
from kdpipe.pipeline.stages import load_stages
from kdpipe.robustness.attacks.method import asked, parse_attack
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.corruption import COMMON
from kdpipe.robustness.crafting import Replay, craft
from kdpipe.robustness.evaluation import Judgement, Questions, Subject, judge
from kdpipe.robustness.samples import stratified
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.data.splits import DataSplits

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tables"

EPSILON_255 = {"fashion-mnist": 8, "cifar10": 4}
"""Of all attacks, in training as well, in units of 1/255."""

ATTACKED = 500
CORRUPTED = 500
WHITE_BOX = {"teacher": ("pgd-20",), "student": ("pgd-20", "autoattack"), "pruned": ("pgd-20",), "twin": ("pgd-20", "apgd-ce", "apgd-t")}
"""The attacks on each network. Its own answers to them are its figures; the files have to stand all of them, and Square beside."""

BLACK_BOX = ("square-1000", 200)
"""The attack on the files themselves, and on how many of the attacked samples."""

RUNTIMES = ("onnxruntime", "openvino")
STEPS = {"teacher": "teacher", "student": "distill", "pruned": "prune", "twin": "qat@cpu"}

_ATTACK = "\n[distill.attack]\nepsilon = {epsilon}\nsteps = 5\n"
OBJECTIVES = {
    "plain": 'objective = "plain"\n',
    "kd": 'objective = "kd"\n',
    "augmix": 'objective = "augmix"\n',
    "at": f'objective = "at"\n{_ATTACK}',
    "trades": f'objective = "trades"\nbeta = 6.0\n{_ATTACK}',
    "ard": f'objective = "ard"\n{_ATTACK}',
    "rslad": f'objective = "rslad"\n{_ATTACK}',
    "iad": f'objective = "iad"\n{_ATTACK}',
    "mtard": f'objective = "mtard"\n{_ATTACK}',
    "adaad": f'objective = "adaad"\n{_ATTACK}',
}
"""Each objective with its authors' settings where it has them; the attack of five steps for all."""

PARTS = ("train", "attack", "corrupt")


@dataclass(frozen=True)
class Built:
    """What one build left: the folder of each network by its name in the table, the int8 file, and the data."""

    project: Path
    networks: Mapping[str, Path]
    file: Path
    data: DataSplits
    epsilon: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sorted(path.stem for path in (ROOT / "benchmarks" / "tables").glob("*.toml")))
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES), help="default: all")
    parser.add_argument("--only", choices=PARTS, help="one part for all objectives, instead of all parts for one after the other")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = RESULTS / options.set
    folder.mkdir(parents=True, exist_ok=True)
    for objective in options.objectives:
        for part in [options.only] if options.only else PARTS:
            path = folder / f"{objective}-{part}.json"
            if path.is_file():
                continue
            started = time.monotonic()
            built = _trained(options.set, objective)
            figures, answers = {"train": _described, "attack": _attacked, "corrupt": _corrupted}[part](built)
            if answers:
                np.savez_compressed(path.with_suffix(".npz"), **answers)
            record = {"command": f"python benchmarks/robust_table.py {options.set} --objectives {objective}", "objective": objective, "part": part}
            write_json(path, {**record, "seconds": round(time.monotonic() - started, 1), "machine": _machine(built.project), **figures})
            print(f"{options.set} {objective} {part}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return 0


def _trained(name: str, objective: str) -> Built:
    """The build with this objective, made or found in the store."""
    project, epsilon = ROOT / "benchmarks" / ".work" / f"table-{name}", round(EPSILON_255[name] / 255, 5)
    project.mkdir(parents=True, exist_ok=True)
    if name == "cifar10":
        shutil.copyfile(Path(os.environ["KDPIPE_DATA"]) / "pretrained" / "cifar10-resnet20.safetensors", project / "resnet20.safetensors")
    base = (ROOT / "benchmarks" / "tables" / f"{name}.toml").read_text()
    teachers = "".join(re.findall(r"(?m)^#: ?(.*\n)", base)) if objective == "mtard" else ""
    write_text(project / "kdpipe.toml", base.replace("# objective\n", f"{OBJECTIVES[objective].format(epsilon=epsilon)}{teachers}\n"))
    with progress_for(as_json=False) as progress:
        result = build(project, until="export", progress=progress)
    data = read_config(project, load_stages()).task.load(project, 0)
    networks = {model: result.results[step].folder for model, step in STEPS.items()}
    return Built(project, networks, result.results["export@cpu"].folder / "model.onnx", data, epsilon)


def _described(built: Built) -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = {model: (folder / WEIGHTS_FILE).stat().st_size for model, folder in built.networks.items() if model != "twin"}
    return {"train_samples": len(built.data.train), "size_bytes": {**sizes, "int8": built.file.stat().st_size}}, {}


def _attacked(built: Built) -> tuple[dict[str, Any], dict[str, Any]]:
    """Clean accuracy and calibration on the whole test split; under attack on a part of it, the same for all models."""
    questions = _questions(built.data, attacked=ATTACKED)
    judged: dict[str, Judgement] = {}
    replays: list[Replay] = []
    for model, names in WHITE_BOX.items():
        network = load_network(built.networks[model])
        with quiet(network.module):
            own = [_crafted(built, model, name, network.module, questions) for name in names]
            judged[model] = judge(TorchPredictor(network.module), built.data.test, questions, _subject(model), replays=own)
        replays += own
    for runtime, session in _sessions(built.file):
        name, count = BLACK_BOX
        some = stratified(built.data.test.labels, count, seed=0)
        method = parse_attack(name, norm="linf", epsilon=built.epsilon, at="BLACK_BOX")
        square = craft(method, name, asked(session), built.data.test, some, crafted_on="file", seed=0, batch_size=questions.batch_size)
        judged[f"int8 {runtime}"] = judge(session, built.data.test, questions, _subject("int8"), replays=[*replays, square])
    answers = {f"{model}/{name}": right for model, judgement in judged.items() for name, right in judgement.correct.items()}
    cards = {model: _card(judgement, ("clean", "nll", "ece", "attacks", "robust")) for model, judgement in judged.items()}
    return {"epsilon": built.epsilon, "models": cards}, {**answers, "indices": questions.attacked}


def _corrupted(built: Built) -> tuple[dict[str, Any], dict[str, Any]]:
    """The common corruptions at five severities."""
    questions = _questions(built.data, corrupted=CORRUPTED)
    judged: dict[str, Judgement] = {}
    for model in ("teacher", "student", "pruned"):
        network = load_network(built.networks[model])
        with quiet(network.module):
            judged[model] = judge(TorchPredictor(network.module), built.data.test, questions, _subject(model))
    for runtime, session in _sessions(built.file):
        judged[f"int8 {runtime}"] = judge(session, built.data.test, questions, _subject("int8"))
    shares = {
        f"{model}/corrupted": np.mean([right for name, right in judgement.correct.items() if name.startswith("corruption/")], axis=0)
        for model, judgement in judged.items()
    }
    cards = {model: _card(judgement, ("corruption_mean", "corruptions")) for model, judgement in judged.items()}
    return {"corruptions": list(COMMON), "models": cards}, {**shares, "indices": questions.corrupted}


def _crafted(built: Built, model: str, name: str, module: torch.nn.Module, questions: Questions) -> Replay:
    """The attack on one network; made once for a network, whichever objectives share it."""
    path = built.project / "crafted" / f"{built.networks[model].name}-{name}.npy"
    method = parse_attack(name, norm="linf", epsilon=built.epsilon, at="WHITE_BOX")
    if not path.is_file():
        made = craft(method, name, module, built.data.test, questions.attacked, crafted_on=model, seed=0, batch_size=questions.batch_size)
        path.parent.mkdir(exist_ok=True)
        np.save(path.with_suffix(".part.npy"), made.x_adv)
        path.with_suffix(".part.npy").replace(path)
    return Replay(name, method, model, questions.attacked, np.load(path))


def _sessions(file: Path) -> Iterator[tuple[str, Predictor]]:
    for runtime in RUNTIMES:
        with open_session(runtime, file, threads=1) as session:
            yield runtime, session


def _questions(data: DataSplits, *, attacked: int = 1, corrupted: int = 0) -> Questions:
    labels = data.test.labels
    asked_of = stratified(labels, attacked, seed=0)
    names = COMMON if corrupted else ()
    return Questions(asked_of, asked_of, asked_of, stratified(labels, corrupted or 1, seed=0), tuple(names), batch_size=250, seed=0)


def _subject(model: str) -> Subject:
    return Subject(model=model, form="network", size_bytes=0)


def _card(judgement: Judgement, fields: Sequence[str]) -> dict[str, Any]:
    return judgement.scorecard.model_dump(mode="json", include=set(fields))


def _machine(project: Path) -> dict[str, Any]:
    machine = diagnose(project)
    return {"cpu": machine.cpu, "cores": machine.cores, "instruction_sets": list(machine.instruction_sets), "tools": dict(machine.tools)}


if __name__ == "__main__":
    sys.exit(main())
