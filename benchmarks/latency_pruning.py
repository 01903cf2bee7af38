"""Pruning for the chip or for multiply-accumulates: accuracy of int8 files that take the same measured time, on Fashion-MNIST.

    KDPIPE_DATA=… python benchmarks/latency_pruning.py
    KDPIPE_DATA=… python benchmarks/latency_pruning.py --only students      (then plan, train, measure; plan and measure on a quiet machine)

For each seed one student is trained on a part of the training split, and is the teacher of what is pruned from it (`kd`). For each speed-up of the int8
file in ONNX Runtime on this host it is pruned three ways, each with the same epochs of fine-tuning: `latency` (`[prune] speedup`, `measured_on`), and by
multiply-accumulates with widths in multiples of 4 (the default) and of 16, by the fewest that make a file which is so much faster: found by bisection on
measured files, before any of them is trained. All networks are then calibrated and exported alike, scored on the
10,000 test images in ONNX Runtime, and timed in turn in one process, the unpruned network's file among them. Everything finished is kept in
`--work`, and a run that was stopped goes on. Leaves `benchmarks/results/figures/latency-pruning.json`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.foundation.networks import Network, load_network
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.progress import progress_for
from kdpipe.robustness.intervals import accuracy, paired_difference
from kdpipe.stages import prune, teacher
from kdpipe.stages.channel_choice import Limits, least_important
from kdpipe.stages.channel_groups import find_groups, plan_without
from kdpipe.stages.file_latency import Measured, int8_file, stopwatch
from kdpipe.stages.gradients import objective_gradients
from kdpipe.stages.macs import count_macs
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.prune import PruneConfig
from kdpipe.stages.stage import Context, Inputs, Progress
from kdpipe.stages.teacher import TeacherConfig
from kdpipe.stages.trial import cut
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.profile import Profile, load_profile
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "figures" / "latency-pruning.json"
WORK = ROOT / "benchmarks" / ".work" / "latency-pruning"

TASK: Mapping[str, Any] = {"data": "fashion-mnist", "train_samples": 4000}
STUDENT: Mapping[str, Any] = {"network": "resnet-8-x2", "epochs": 6, "batch_size": 64, "learning_rate": 0.05}
PRUNE: Mapping[str, Any] = {"steps": 1, "epochs": 3, "max_ratio": 0.85, "learning_rate": 0.05}
SPEEDUPS = (1.5, 1.75, 2.0)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "latency": {"measured_on": "target"},
    "macs, multiples of 4": {"round_to": 4},
    "macs, multiples of 16": {"round_to": 16},
}

PHASES = ("students", "plan", "train", "measure")

_GRID = (1.5, 2.2, 3.2, 4.7, 6.0)  # multiply-accumulates before / after; those out of reach are left out
_BISECTIONS = 3
_BATCH = 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS), choices=SPEEDUPS, help="which to train (default: all)")
    parser.add_argument("--only", choices=PHASES, help="one of the phases, in this order (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go (default: benchmarks/results/figures/latency-pruning.json)")
    parser.add_argument("--work", type=Path, default=WORK, help="where networks and files go (default: benchmarks/.work/latency-pruning)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with progress_for(as_json=False) as progress:
        runs = [Seed(seed, options.work, progress) for seed in options.seeds]
        for phase in PHASES if options.only is None else (options.only,):
            for speedup in options.speedups if phase in ("plan", "train") else (None,):
                for run in runs:
                    run.do(phase, speedup)
    finished = [json.loads(path.read_text()) for seed in options.seeds if (path := options.work / f"seed-{seed}" / "result.json").is_file()]
    if finished:
        write_json(options.results, _figures(finished, options.work))
    return 0


@dataclass(frozen=True)
class Seed:
    """All runs of one seed, in a folder of their own; the latency table is shared between seeds."""

    seed: int
    work: Path
    progress: Progress

    @property
    def folder(self) -> Path:
        """What is kept of this seed."""
        return self.work / f"seed-{self.seed}"

    @cached_property
    def task(self) -> ImageClassification:
        """Fashion-MNIST, a part of it."""
        return ImageClassification.model_validate(TASK)

    @cached_property
    def data(self) -> DataSplits:
        """Its splits by this seed."""
        return self.task.load(self.work, self.seed)

    @cached_property
    def profile(self) -> Profile:
        """The target that ships for this host."""
        return load_profile("cpu", at="benchmark")

    def do(self, phase: str, speedup: float | None) -> None:
        """One phase, for one speed-up where it has several."""
        if phase == "students":
            self.student()
        elif phase == "measure":
            self.measure()
        elif speedup is not None:
            for method in METHODS:
                if phase == "plan" and method != "latency":
                    self._macs(method, speedup)
                elif phase == "train":
                    self.train(method, speedup)

    def student(self) -> None:
        """What all others are pruned from; scored."""
        student = self.folder / "student"
        if not (student / "network.json").is_file():
            student.mkdir(parents=True, exist_ok=True)
            teacher.run(Inputs({}, self.data, self.task), TeacherConfig.model_validate({**STUDENT, "objective": "plain"}), self._context(student))
        self._scored(student)

    def train(self, method: str, speedup: float) -> None:
        """The student pruned by this method, fine-tuned and scored; nothing where the speed-up is out of the method's reach."""
        goal = speedup if method == "latency" else self._macs(method, speedup)
        if goal is not None:
            self._pruned(method, speedup, {**METHODS[method], "speedup": goal})

    def measure(self) -> None:
        """Time the files in turn, and put all of this seed together."""
        files = {"student": self.folder / "student" / "model.onnx"}
        files |= {f"{method}/{speedup}": path for method in METHODS for speedup in SPEEDUPS if (path := self._place(method, speedup) / "model.onnx").is_file()}
        with stopwatch(self.profile, None, self.work) as watch:
            measured = watch.compared({name: path.read_bytes() for name, path in files.items()}, self.data.validation, self.seed)
            told = watch.told
        rows = [self._row(name, path.parent, measured[name]) for name, path in files.items()]
        machine = diagnose(self.work)
        record = {"seed": self.seed, "where": told, "machine": {"cpu": machine.cpu, "cores": machine.cores, "tools": dict(machine.tools)}, "rows": rows}
        write_json(self.folder / "result.json", record)

    def _pruned(self, method: str, speedup: float, keys: Mapping[str, Any]) -> None:
        folder = self._place(method, speedup)
        if not (folder / "pruning.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            spent = time.process_time()
            filled = {"objective": Kd(), **({"profile": self.profile} if method == "latency" else {})}
            config = PruneConfig.model_validate({**PRUNE, **keys}).model_copy(update=filled)
            prune.run(self._inputs, config, self._context(folder))
            print(f"seed {self.seed}, {method}, {speedup}: {time.process_time() - spent:.0f} CPU seconds", file=sys.stderr, flush=True)
        self._scored(folder)

    def _scored(self, folder: Path) -> None:
        """The calibrated int8 file, and which test images it names rightly."""
        if (folder / "correct.npy").is_file():
            return
        content = _calibrated(load_network(folder), self.data, self.profile, self.seed)
        write_bytes(folder / "model.onnx", content)
        split, need = self.data.test, self.profile.runtimes[0]
        with open_session(need.name, folder / "model.onnx", threads=1, hint="latency", versions=need.versions) as session:
            starts = range(0, len(split), _BATCH)
            answers = [session(split.read(np.arange(start, min(start + _BATCH, len(split))))).argmax(axis=1) for start in starts]
        np.save(folder / "correct.npy", np.concatenate(answers) == split.labels)

    def _macs(self, method: str, speedup: float) -> float | None:
        """Before over after of multiply-accumulates, the least whose file is so much faster as measured; None: out of reach."""
        kept = self.folder / f"{method}.json"
        record: dict[str, Any] = (
            json.loads(kept.read_text()) if kept.is_file() else {"macs": {}, "shares of the time": list(self._times(method, _GRID).items())}
        )
        if str(speedup) not in record["macs"]:
            known = dict(record["shares of the time"])
            for _ in range(_BISECTIONS):
                low, high = _around(known, 1 / speedup)
                if low is not None and high is not None:
                    known |= self._times(method, [(low * high) ** 0.5])
            record["macs"][str(speedup)] = _around(known, 1 / speedup)[1]
            record["shares of the time"] = sorted(known.items())
            write_json(kept, record)
        found: float | None = record["macs"][str(speedup)]
        return found

    def _times(self, method: str, macs: Sequence[float]) -> dict[float, float]:
        """The share of the unpruned file's time that networks take which are cut to these multiply-accumulates; those out of reach are left out."""
        cuts = {goal: network for goal in macs if (network := self._cut(method, goal)) is not None}
        if not cuts:
            return {}
        files = {"student": int8_file(self._student, self.data.train, self.profile)}
        files |= {str(goal): int8_file(network, self.data.train, self.profile) for goal, network in cuts.items()}
        with stopwatch(self.profile, None, self.work) as watch:
            measured = watch.compared(files, self.data.validation, self.seed)
        return {goal: measured[str(goal)].share for goal in cuts}

    def _cut(self, method: str, macs: float) -> Network | None:
        """The cut that the prune stage will make for this goal."""
        student, shape = self._student, self._student.spec.contract.shape
        most = {group.name: int(group.width * PRUNE["max_ratio"]) for group in self._groups}
        whole = count_macs(student.module, shape)
        choice = least_important(
            self._groups,
            Limits(METHODS[method]["round_to"], most),
            lambda choice: count_macs(cut(student, plan_without(choice, student.module)).module, shape) <= whole / macs,
        )
        return None if choice is None else cut(student, plan_without(choice, student.module))

    @cached_property
    def _groups(self) -> Any:
        """Scored as the prune stage scores them in its first step."""
        config = PruneConfig.model_validate({**PRUNE, "speedup": 2})
        example = torch.from_numpy(self.data.train.read(np.arange(8)))
        inputs, context = self._inputs, self._context(self.folder)
        teacher = [load_network(self.folder / "student")]  # a network of its own: teachers give no gradients
        gradients = objective_gradients(self._student, Kd(), teacher, inputs, context, config.batch_size, config.importance_batches, label="prune/step-1")
        return find_groups(self._student.module, example, gradients)[0]

    @cached_property
    def _student(self) -> Network:
        return load_network(self.folder / "student")

    @cached_property
    def _inputs(self) -> Inputs:
        return Inputs({"distill": self.folder / "student", "teacher": self.folder / "student"}, self.data, self.task)

    def _context(self, folder: Path) -> Context:
        return Context(folder, self.work, self.seed, threads=1, progress=self.progress)

    def _place(self, method: str, speedup: float) -> Path:
        return self.folder / f"{method.replace(', multiples of ', '-')}-{speedup:g}"

    def _row(self, name: str, folder: Path, measured: Measured) -> dict[str, Any]:
        method, _, speedup = name.partition("/")
        right = np.load(folder / "correct.npy")
        row: dict[str, Any] = {"method": method, "speedup": float(speedup) if speedup else None, "time": measured.model_dump(mode="json")}
        row["clean"] = accuracy(right).model_dump(mode="json")
        if speedup:
            report = json.loads((folder / "pruning.json").read_text())
            row |= {"macs": report["speedup"], "widths": {layer: after[1] for layer, (_, after) in report["layers"].items()}}
        if method == "latency":
            [step] = report["latency"]["steps"]
            row |= {"way": step["way"], "attempts": step["attempts"]}
        elif speedup and (ours := self._place("latency", float(speedup)) / "correct.npy").is_file():
            row["latency less this"] = asdict(paired_difference(np.load(ours), right))
        return row


def _around(known: Mapping[float, float], goal: float) -> tuple[float | None, float | None]:
    """The largest cut that is still too slow, and the smallest that takes at most the goal's share; where times do not rise with cuts, the smallest counts."""
    fits = min((macs for macs, share in known.items() if share <= goal), default=None)
    slow = max((macs for macs, share in known.items() if share > goal and (fits is None or macs < fits)), default=None)
    return slow, fits


def _calibrated(network: Network, data: DataSplits, profile: Profile, seed: int) -> bytes:
    """The int8 file, calibrated as the profile says; no fine-tuning, the same for all."""
    twin = prepare(network.module.eval(), profile.chosen_scheme, batch_norm="live")
    chosen = numpy_stream(seed, "qat/calibration").permutation(len(data.train))[: profile.calibration.samples].astype(np.int64)
    calibrate_(twin, [torch.from_numpy(data.train.read(chosen))], profile.calibration.method, percentile=profile.calibration.percentile)
    return twin_file(freeze(twin), network.spec.contract, profile)


def _figures(finished: Sequence[Mapping[str, Any]], work: Path) -> dict[str, Any]:
    """Everything, and for each speed-up and other method the paired difference over all seeds."""
    return {
        "command": "KDPIPE_DATA=… python benchmarks/latency_pruning.py",
        "task": dict(TASK),
        "student": dict(STUDENT),
        "prune": dict(PRUNE),
        "seeds": list(finished),
        "pooled": list(_pooled(finished, work)),
    }


def _pooled(finished: Sequence[Mapping[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    for method in list(METHODS)[1:]:
        for speedup in SPEEDUPS:
            pairs = []
            for record in finished:
                places = [Seed(record["seed"], work, lambda *_: None)._place(each, speedup) / "correct.npy" for each in ("latency", method)]  # type: ignore[arg-type]
                if all(place.is_file() for place in places):
                    pairs.append([np.load(place) for place in places])
            if pairs:
                ours, others = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
                yield {"method": method, "speedup": speedup, "seeds": len(pairs), "latency less this": asdict(paired_difference(ours, others))}


if __name__ == "__main__":
    sys.exit(main())
