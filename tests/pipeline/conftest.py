"""A finished build on disk: small, every file in its real schema, every accuracy derived from the per-sample arrays beside it."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import pytest
import safetensors.numpy
from onnx import TensorProto, helper

from kdpipe.foundation.files import write_bytes, write_json, write_text
from kdpipe.foundation.networks import InputContract, NetworkSpec
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.pipeline.steps import BuildResult, Step, StepResult
from kdpipe.robustness.intervals import accuracy
from kdpipe.robustness.scorecard import (
    AttackFigure,
    CorruptionFigure,
    CoveragePoint,
    EpsilonPoint,
    Figure,
    MaskingCheck,
    OodFigure,
    ReliabilityBin,
    Scorecard,
    TemperatureEffect,
)
from kdpipe.stages.history import EpochRecord, History, write_history
from kdpipe.stages.judged_examples import ANSWERS_FILE, TENSORS_FILE, Answer, Examples
from kdpipe.stages.parity import Parity, compared
from kdpipe.stages.prune import Cost, PruningReport, PruningStep
from kdpipe.stages.qat import Outcome
from kdpipe.stages.validation import Validation
from kdpipe.targets.lint import LintFinding
from kdpipe.targets.measurements import Bench, DeviceFacts, Explanation, Finding, Latency, NodePrecision, NoiseCheck, Percentile, Start

N = 540
TINY_PROJECT = Path(__file__).with_name("tiny_project.py")
ORT, OPENVINO = "onnxruntime 1.32.0 CPU", "openvino 2026.4.1 CPU"
SEVERITY_LOSS = (0, 2, 5, 11, 22)
PRUNING = PruningReport(
    before=Cost(macs=2_400_000, parameters=77_000),
    after=Cost(macs=1_500_000, parameters=41_000),
    speedup=1.6,
    steps=(
        PruningStep(after=Cost(macs=1_900_000, parameters=58_000), speedup=1.26, removed={"body.stem": 4, "body.stages.0": 8}),
        PruningStep(after=Cost(macs=1_500_000, parameters=41_000), speedup=1.6, removed={"body.stages.0": 8}),
    ),
    layers={"body.stem": ((1, 16), (1, 12))},
    whole={"body.head": "its channels are the network's outputs"},
)
_EFFECT = TemperatureEffect(
    value=1.613,
    nll_before=Figure(value=0.29, low=0.23, high=0.35, n=N),
    ece_before=Figure(value=6.9, low=4.8, high=8.9, n=N),
    brier_before=Figure(value=0.056, low=0.042, high=0.071, n=N),
    nll_change=Figure(value=-0.08, low=-0.11, high=-0.05, n=N),
    brier_change=Figure(value=-0.005, low=-0.008, high=-0.001, n=N),
)
CORRUPTIONS = {"gaussian-noise": 1.6, "jpeg": 0.4, "contrast": 1.0}


@dataclass(frozen=True)
class Model:
    """What one model of the build is to score: per cent right on clean samples and under attack."""

    clean: float
    robust: float
    size_bytes: int


@dataclass
class BuildFolder:
    """A writer of finished builds; change `models`, `measured`, … before `write`."""

    root: Path
    name: str = "digits"
    labels: tuple[str, ...] = tuple(str(digit) for digit in range(10))
    targets: tuple[str, ...] = ("cpu", "arm")
    measured: tuple[str, ...] = ("cpu",)
    until: str | None = None
    runs: int = 400
    kept: Literal["ptq", "qat"] = "qat"
    findings: tuple[LintFinding, ...] = ()
    digest: int = 7
    """stands for the content of the judged samples"""
    graded: bool = True
    """whether the clean answers' confidence, NLL and Brier score were kept"""
    weaker: dict[tuple[str, str], Model] = field(default_factory=dict)
    """what a file scores in one runtime where it is not as in `models`"""
    models: dict[str, Model] = field(
        default_factory=lambda: {
            "teacher": Model(98.0, 76.0, 1_093_000),
            "student": Model(97.2, 74.0, 312_000),
            "pruned": Model(97.0, 73.5, 171_000),
            "twin": Model(96.9, 73.0, 171_000),
            "int8": Model(96.9, 72.8, 58_400),
            "ptq": Model(95.4, 68.1, 58_400),
        }
    )

    def write(self) -> BuildResult:
        results: dict[str, StepResult] = {}

        def step(name: str, seconds: float) -> Path:
            folder = self.root / "store" / name
            folder.mkdir(parents=True)
            stage, _, target = name.partition("@")
            identity: dict[str, Any] = {"data": "ab" * 32, "code": {}, "tools": {"torch": "2.13.0"}, "threads": 1}
            results[name] = StepResult(Step(name, stage, target or None, f"{len(results):02x}" * 32, identity), folder, "built", seconds, 400_000_000)
            return folder

        for stage, model, seconds in (("teacher", "teacher", 31.0), ("distill", "student", 24.5), ("prune", "pruned", 9.25)):
            folder = step(stage, seconds)
            self._train(folder, stage)
            if stage == "prune":
                write_text(folder / "pruning.json", PRUNING.model_dump_json())
            self._score(step(f"score-{stage}", 3.5), model, "network")
        for target in self.targets if self.until is None else ():
            self._quantize(step(f"qat@{target}", 7.75))
            self._score(step(f"score-qat@{target}", 3.5), "twin", "twin")
            self._export(step(f"export@{target}", 2.5))
            self._score_files(step(f"score-export@{target}", 4.0), self.runtimes(target))
            write_text(step(f"bench@{target}", 12.0) / "bench.json", self._bench(target).model_dump_json(indent=2))
        config = {
            "project": {"name": self.name, "seed": 0},
            "distill": {"objective": "rslad", "attack": {"epsilon": 0.1}},
            "targets": {target: {"profile": {"name": target, "runtimes": [{"name": "onnxruntime"}]}} for target in self.targets},
        }
        return BuildResult(self.root, self.name, config, "kdpipe build", self.targets, results)

    def runtimes(self, target: str) -> tuple[str, ...]:
        return (ORT, OPENVINO) if target == "cpu" else (ORT,)

    def _train(self, folder: Path, label: str) -> None:
        epochs = tuple(
            EpochRecord(
                epoch=k + 1,
                learning_rate=0.05,
                loss={"total": 1.9 - 0.2 * k},
                validation=Validation(clean_accuracy=a, loss=1.4 - 0.15 * k, robust_accuracy=a - 0.22),
            )
            for k, a in enumerate(np.linspace(0.62, 0.97, 8).tolist())
        )
        write_history(folder, History(label=label, objective="rslad", select_by="balanced", epochs=epochs, best_epoch=7, stopped_early=False))
        spec = NetworkSpec(factory="kdpipe.tasks.networks.cnn:cnn", contract=InputContract(shape=(1, 8, 8), labels=self.labels), mean=(0.3,), std=(0.3,))
        write_text(folder / "network.json", spec.model_dump_json())

    def _quantize(self, folder: Path) -> None:
        self._train(folder, "qat")
        judged = Validation(clean_accuracy=0.97, loss=0.1, robust_accuracy=0.73)
        outcome = Outcome(
            scheme=Scheme(),
            calibration_samples=512,
            calibration_method="minmax",
            select_by="balanced",
            float_network=judged,
            ptq=judged,
            qat=judged,
            kept=self.kept,
        )
        write_text(folder / "quantization.json", outcome.model_dump_json())

    def wanted(self, model: str, runtime: str | None) -> Model:
        return self.weaker.get((model, runtime or ""), self.models[model])

    def correct(self, model: str, runtime: str | None = None) -> dict[str, npt.NDArray[np.bool_]]:
        """Per-sample correctness with the shares of `models`; hard samples are hard for every model."""
        wanted = self.wanted(model, runtime)
        order = np.random.default_rng(1).permutation(N)
        arrays = {"clean": _right(order, wanted.clean), "robust": _right(order, wanted.robust), "attack/fgsm": _right(order, wanted.robust + 6)}
        arrays["attack/pgd-20"] = arrays["robust"]
        for name, weight in CORRUPTIONS.items():
            for severity, loss in enumerate(SEVERITY_LOSS, start=1):
                arrays[f"corruption/{name}-{severity}"] = _right(order, wanted.clean - weight * loss)
        return arrays

    def card(self, model: str, form: str, runtime: str | None) -> Scorecard:
        arrays, wanted = self.correct(model, runtime), self.wanted(model, runtime)
        corruptions = {key.removeprefix("corruption/"): array for key, array in arrays.items() if key.startswith("corruption/")}
        crafted_on = ("twin", "file") if form == "file" else ("itself",)
        return Scorecard(
            model=model,
            form=form,  # type: ignore[arg-type]  # one of the three that it may be
            runtime=runtime,
            size_bytes=wanted.size_bytes,
            parameters=wanted.size_bytes // 4,
            macs=wanted.size_bytes * 37,
            clean=accuracy(arrays["clean"]),
            nll=Figure(value=0.21, low=0.18, high=0.25, n=N),
            ece=Figure(value=3.4, low=2.2, high=4.9, n=N),
            attacks=tuple(
                AttackFigure(name=name, norm="linf", epsilon=0.1, steps=steps, restarts=1, crafted_on=crafted_on, accuracy=accuracy(arrays[f"attack/{name}"]))
                for name, steps in (("fgsm", 1), ("pgd-20", 20))
            ),
            robust=accuracy(arrays["robust"]),
            epsilon_curve=tuple(
                EpsilonPoint(epsilon=e, accuracy=accuracy(_right(np.arange(N), wanted.clean - (wanted.clean - wanted.robust) * (e / 0.1) ** 1.3)))
                for e in (0.0, 0.025, 0.05, 0.1, 0.2, 0.4)
            ),
            corruptions=tuple(CorruptionFigure(name=key[:-2], severity=int(key[-1]), accuracy=accuracy(array)) for key, array in corruptions.items()),
            corruption_mean=accuracy(np.concatenate(list(corruptions.values()))),
            reliability=tuple(
                ReliabilityBin(low=k / 15, high=(k + 1) / 15, n=n, confidence=(k + 0.5) / 15 if n else None, accuracy=min(1.0, (k + 1.1) / 15) if n else None)
                for k, n in enumerate((0, 0, 2, 5, 8, 10, 12, 14, 17, 20, 26, 34, 52, 90, 250))
            ),
            ece_mass=Figure(value=3.1, low=1.6, high=4.7, n=N),
            brier=Figure(value=0.051, low=0.038, high=0.067, n=N),
            aurc=Figure(value=0.4, low=0.2, high=0.8, n=N),
            risk_coverage=tuple(
                CoveragePoint(coverage=share, risk=Figure(value=3.1 * share**3, low=2.1 * share**3, high=4.6 * share**2, n=round(N * share)))
                for share in (k / 20 for k in range(1, 21))
            ),
            temperature=_EFFECT if form == "file" and model == "int8" else None,
            ood=tuple(
                OodFigure(name="inverted", score=score, auroc=Figure(value=81.2, low=78.0, high=84.1, n=N), fpr95=Figure(value=61.5, low=55.2, high=67.0, n=N))
                for score in ("max-softmax", "energy")
            ),
            masking=(
                MaskingCheck(name="stronger than random noise", passed=True, detail="pgd-20 72.8 %, random signs 96.1 %"),
                MaskingCheck(name="accuracy near 0 at a huge epsilon", passed=False, detail="24.1 % at ε = 0.5, at most 10.0 % is expected"),
                MaskingCheck(name="black box is no better than white box", passed=None, detail="no black-box attack was asked for"),
            ),
        )

    def _score(self, folder: Path, model: str, form: str) -> None:
        write_text(folder / "scorecard.json", self.card(model, form, None).model_dump_json(indent=2))
        np.savez(folder / "correct.npz", **self.correct(model), **{"indices/attack": np.arange(N)})

    def _score_files(self, folder: Path, runtimes: tuple[str, ...]) -> None:
        cards: list[Any] = []
        arrays: dict[str, npt.NDArray[Any]] = {}
        for model in ("int8", "ptq"):
            for runtime in runtimes:
                cards.append(self.card(model, "file", runtime).model_dump(mode="json"))
                correct = self.correct(model, runtime)
                arrays |= {f"{model}/{runtime}/{kind}": array for kind, array in correct.items()}
                arrays |= {f"{model}/{runtime}/{kind}": array for kind, array in _grades(correct["clean"]).items() if self.graded}
        arrays |= {f"indices/{kind}": np.arange(N) for kind in ("attack", "black-box", "corruption")}
        if self.graded:
            arrays["digest/samples"] = np.full(32, self.digest, np.uint8)
        write_json(folder / "scorecards.json", cards)
        np.savez(folder / "correct.npz", **arrays)
        write_json(folder / "unavailable.json", {})
        self._examples(folder)

    def _examples(self, folder: Path) -> None:
        side, random = np.linspace(0, 1, 8, dtype=np.float32), np.random.default_rng(3)
        clean = np.stack([np.abs(np.sin(3 * np.outer(side, side) + k))[None] for k in range(4)]).astype(np.float32)
        versions = {
            "clean": clean,
            "adversarial": np.clip(clean + np.float32(0.1) * random.choice([-1, 1], clean.shape).astype(np.float32), 0, 1),
            "corrupted/jpeg": np.clip(clean + random.normal(0, 0.05, clean.shape).astype(np.float32), 0, 1),
        }
        answers = {name: tuple(Answer(label=k if name != "adversarial" or k % 2 else 9, confidence=0.9 - 0.1 * k) for k in range(4)) for name in versions}
        examples = Examples(indices=(3, 1, 4, 15), labels=(0, 1, 2, 3), attack="pgd-20 on twin", answers=answers)
        write_bytes(folder / TENSORS_FILE, safetensors.numpy.save(versions))
        write_text(folder / ANSWERS_FILE, examples.model_dump_json(indent=2))

    def _export(self, folder: Path) -> None:
        """A real model: each class's logit is ten times the mean of its row of pixels, so that the brightest row wins."""
        rows = np.kron(np.eye(8, 10, dtype=np.float32), np.full((8, 1), 10 / 8, np.float32))  # 64 pixels to 10 classes; two never win
        nodes = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "rows"], ["logits"])]
        graph = helper.make_graph(
            nodes,
            "rows",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
            [onnx.numpy_helper.from_array(rows, "rows")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        logits = np.random.default_rng(4).normal(size=(360, 10)).astype(np.float32)
        rungs = (
            compared("network → twin", logits, logits + 0.01, logits.argmax(1), tolerance=None, note="the effect of quantization: budgets judge it"),
            compared(f"twin → {ORT}", logits, logits, logits.argmax(1), tolerance=0.02, file="model.onnx"),
        )
        write_text(folder / "parity.json", Parity(rungs=rungs).model_dump_json())
        write_json(folder / "lint.json", {"profile": folder.name.partition("@")[2], "findings": [finding.model_dump() for finding in self.findings]})
        write_bytes(folder / "model.onnx", model.SerializeToString())
        write_json(
            folder / "contract.json",
            {
                "inputs": [{"name": "input", "shape": ["batch", 1, 8, 8], "type": "float32", "low": 0.0, "high": 1.0}],
                "outputs": [{"name": "logits", "shape": ["batch", 10], "type": "float32"}],
                "labels": list(self.labels),
            },
        )

    def _bench(self, target: str) -> Bench:
        if target not in self.measured:
            return Bench(target=target, device=None, not_measured="not measured: no device")
        latencies = tuple(
            _latency(model, runtime, batch, threads, p50 * batch**0.8 / threads**0.5, self.runs)
            for runtime in self.runtimes(target)
            for batch, threads in ((1, 1), (1, 2), (32, 1))
            for model, p50 in (("int8", 0.082), ("float", 0.131), ("teacher", 1.24))
        )
        operators = ["QuantizeLinear", *["QLinearConv", "QLinearConv", "QLinearAdd"] * 4, "QLinearGlobalAveragePool", "Flatten", "QLinearMatMul", "Softmax"]
        explanation = Explanation(
            runtime=ORT,
            nodes=tuple(
                NodePrecision(
                    name=f"node_{k}",
                    operator=operator,
                    precision="int8" if operator.startswith("QLinear") else "float32",
                    fused=("Relu",) if operator == "QLinearConv" else (),
                    microseconds=4.0,
                    share=1 / len(operators),
                    bytes_read=2_304,
                    bytes_written=1_024,
                )
                for k, operator in enumerate(operators)
            ),
            int8_share=1.0,
            findings=(
                Finding(cause="missing-instruction", text="this CPU has no int8 dot product (VNNI)", nodes=("node_1",), share=0.62, remedy="choose float"),
                Finding(text="of a file that held texts only"),
            ),
            ratio_to_float=0.63,
        )
        device = DeviceFacts(
            name="local",
            cpu="Some CPU @ 2.80GHz",
            architecture="x86_64",
            instruction_sets=("avx2",),
            cores=2,
            memory_bytes=8_000_000_000,
            runtimes={"onnxruntime": "1.32.0"},
        )
        starts = tuple(
            Start(model=model, runtime=ORT, load_ms=12.0, first_inference_ms=1.4, peak_memory_bytes=91_000_000) for model in ("int8", "float", "teacher")
        )
        noise = (NoiseCheck(runtime=ORT, batch=1, threads=1, ratio=Percentile(value_ms=1.003, low_ms=0.991, high_ms=1.014)),)
        return Bench(
            target=target,
            noise=noise,
            device=device,
            latencies=latencies,
            starts=starts,
            explanations=(explanation,),
            warnings=("the clock changed by 8 % during the run",),
        )


@pytest.fixture
def build_folder(tmp_path: Path) -> BuildFolder:
    return BuildFolder(tmp_path / "project")


def _right(order: npt.NDArray[np.int64], percent: float) -> npt.NDArray[np.bool_]:
    right = np.zeros(N, bool)
    right[order[: max(0, round(N * percent / 100))]] = True
    return right


def _grades(clean: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.float32]]:
    """Two classes, and 0.9 for the one that is chosen."""
    sure = np.full(N, 0.9)
    label = np.where(clean, sure, 1 - sure)
    return {name: array.astype(np.float32) for name, array in (("confidence", sure), ("nll", -np.log(label)), ("brier", 2 * (1 - label) ** 2))}


def _latency(model: str, runtime: str, batch: int, threads: int, p50: float, runs: int) -> Latency:
    def around(value: float, needed: int) -> Percentile:
        if runs < needed:
            return Percentile(value_ms=None, reason=f"not claimable: {runs} runs, {needed} are needed")
        return Percentile(value_ms=value, low_ms=value * 0.97, high_ms=value * 1.06)

    bump = np.exp(-(((np.arange(30) - 4) / 4.0) ** 2)) + 0.01
    return Latency(
        model=model,  # type: ignore[arg-type]  # one of the three that it may be
        runtime=runtime,
        batch=batch,
        threads=threads,
        runs=runs,
        p50=around(p50, 11),
        p90=around(1.17 * p50, 64),
        p95=around(1.3 * p50, 130),
        p99=around(1.6 * p50, 662),
        samples_per_second=1000 * batch / p50,
        histogram_edges_ms=tuple((np.linspace(0.85, 1.9, 31) * p50).tolist()),
        histogram_counts=tuple(np.random.default_rng(2).multinomial(runs, bump / bump.sum()).tolist()),
        ratio_to_float=Percentile(value_ms=0.626, low_ms=0.61, high_ms=0.64) if model == "int8" else None,
    )


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny_project.py`: stages that are real but do next to nothing."""
    spec = importlib.util.spec_from_file_location("tiny_project", TINY_PROJECT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_project"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path, tiny: ModuleType) -> Path:
    """A folder with the tiny project's `kdpipe.toml`."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "kdpipe.toml").write_text(tiny.KDPIPE_TOML)
    return folder
