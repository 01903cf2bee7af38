"""`[budgets]`: what the shipped file must keep to, each judged on the unfavourable 95 % bound, never on the point estimate.

A budget that cannot be checked is not met: it says why, and the build ends with exit code 4.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from kdpipe.pipeline.results import Judged, JudgedThere, Results, TargetResults, read_results
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.steps import Verdict as Verdict
from kdpipe.robustness.intervals import paired_difference
from kdpipe.robustness.sample_size import samples_to_stay_above, samples_to_stay_within
from kdpipe.stages.device_quality import spread

MODEL_FORMS = {"model.onnx": ("model.onnx",), "model.xml and model.bin": ("model.xml", "model.bin")}
"""the forms in which a model ships, each with its files"""


class Budgets(BaseModel, extra="forbid", frozen=True):
    """`[budgets]` and `[targets.NAME.budgets]`. Each is optional; the worst runtime of the target counts."""

    clean_drop: float | None = Field(
        None, ge=-100, le=100, description="percentage points that the int8 file may lose to the teacher on clean data; the drop's upper 95 % bound counts"
    )
    robust_accuracy: float | None = Field(
        None, ge=0, le=100, description="per cent that the int8 file keeps under the worst of all attacks; the lower 95 % bound counts"
    )
    size_kb: float | None = Field(None, gt=0, description="size of the int8 file in kB (1000 bytes)")
    device_spread: float | None = Field(
        None,
        ge=0,
        le=100,
        description="percentage points between the places (runtimes, devices) where the int8 file is most and least accurate; the upper 95 % bound counts",
    )
    p90_ms: float | None = Field(None, gt=0, description="90th percentile of the latency at batch 1 on the target's device, in ms; the upper 95 % bound counts")


def check_budgets(build: BuildResult, budgets: Mapping[str, Budgets]) -> tuple[Verdict, ...]:
    """A verdict for each budget that is set, in the order of the targets; `budgets` by target name."""
    results = read_results(build)
    return tuple(verdict for target in build.targets if target in budgets for verdict in _of_target(results, target, budgets[target]))


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """3 where a budget is missed, else 4 where one could not be checked, else 0.

    A missed one wins: it is a fact about the product, and it stays one when the device is there.
    """
    states = {verdict.state for verdict in verdicts}
    return 3 if "missed" in states else 4 if "not checkable" in states else 0


@dataclass(frozen=True)
class _Measured:
    """A bound that can be compared with the limit, or (`bound` None) why there is none."""

    bound: float | None
    reason: str


def _of_target(results: Results, target: str, budgets: Budgets) -> list[Verdict]:
    tail = results.targets[target]
    elsewhere = [_Measured(None, f"{runtime}: {reason}") for runtime, reason in tail.unavailable.items()]
    unsuited = [_Measured(None, tail.unsuited)] if tail.unsuited else []
    verdicts = []
    if budgets.clean_drop is not None:
        judged: Sequence[Judged | JudgedThere] = tail.on_suited_devices if unsuited else tail.files
        drops = [_clean_drop(results.teacher, file, budgets.clean_drop) for file in judged] or unsuited
        drops += [] if unsuited else elsewhere
        verdicts.append(_verdict("clean_drop", target, budgets.clean_drop, "points", drops, worst=max))
    if budgets.robust_accuracy is not None:
        accuracies = unsuited or [_robust_accuracy(file, budgets.robust_accuracy) for file in tail.files] + elsewhere
        verdicts.append(_verdict("robust_accuracy", target, budgets.robust_accuracy, "%", accuracies, worst=min))
    if budgets.size_kb is not None:
        verdicts.append(_verdict("size_kb", target, budgets.size_kb, "kB", _sizes(tail), worst=max))
    if budgets.device_spread is not None:
        verdicts.append(_verdict("device_spread", target, budgets.device_spread, "points", [_spread(tail), *elsewhere], worst=max))
    if budgets.p90_ms is not None:
        verdicts.append(_verdict("p90_ms", target, budgets.p90_ms, "ms", _p90s(tail), worst=max))
    return verdicts


def _verdict(name: str, target: str, limit: float, unit: str, measured: Sequence[_Measured], worst: Callable[[float, float], float]) -> Verdict:
    """`worst` is max where the limit is a ceiling, min where it is a floor."""

    def misses(bound: float) -> bool:
        return worst(bound, limit) != limit

    known = [(it.bound, it.reason) for it in measured if it.bound is not None]
    unknown = [it for it in measured if it.bound is None]
    missed = [it for it in known if misses(it[0])]
    if missed or (known and not unknown):
        bound, reason = max(known, key=lambda it: it[0]) if worst is max else min(known, key=lambda it: it[0])
        return Verdict(name, target, limit, unit, bound, "missed" if missed else "met", reason)
    reason = unknown[0].reason if unknown else "the int8 file was not judged in this build"
    return Verdict(name, target, limit, unit, None, "not checkable", reason)


def _clean_drop(teacher: Judged | None, file: Judged | JudgedThere, limit: float) -> _Measured:
    if teacher is None or "clean" not in teacher.correct:
        return _Measured(None, "the teacher was not judged in this build")
    if isinstance(file, Judged) and "clean" not in file.correct:
        return _Measured(None, f"{file.name}: {file.card.clean.reason or 'clean accuracy was not measured'}")
    lost = paired_difference(teacher.correct["clean"], file.correct["clean"] if isinstance(file, Judged) else file.correct)
    told = f"teacher minus {file.name}: {lost.value:.2f} points, 95 % interval [{lost.low:.2f}, {lost.high:.2f}], paired, n = {lost.n}"
    needed = samples_to_stay_within(limit, lost.value, lost.high, lost.n) if lost.high > limit else None
    return _Measured(lost.high, told + _too_few(needed))


def _robust_accuracy(file: Judged, limit: float) -> _Measured:
    robust = file.card.robust
    if robust.value is None or robust.low is None:
        return _Measured(None, f"{file.name}: {robust.reason or 'no interval of the accuracy under attack'}")
    told = f"{file.name}: {robust.value:.2f} %, 95 % interval [{robust.low:.2f}, {robust.high:.2f}], n = {robust.n}"
    return _Measured(robust.low, told + _too_few(samples_to_stay_above(limit / 100, robust.value / 100) if robust.low < limit else None))


def _too_few(needed: int | None) -> str:
    """What would help where the value itself keeps to the limit and only its interval does not."""
    return "" if needed is None else f"; too few samples to show that the limit is kept: about {float(f'{needed:.2g}'):,.0f} would, were the value the same"


def spread_told(tail: TargetResults) -> str:
    """How far apart the accuracies of the target's file lie, in words."""
    return _spread(tail).reason


def _spread(tail: TargetResults) -> _Measured:
    """Over every runtime of this host and every device that judged the file; of a variant, over those that it is for: nothing else is to run it."""
    files = () if tail.unsuited else tail.files
    places = {f"{file.card.runtime or file.name} on this host": file.correct["clean"] for file in files if "clean" in file.correct}
    places |= {it.name: it.correct for it in tail.on_suited_devices}
    if len(places) < 2:
        return _Measured(None, tail.unsuited or "the file was judged in one place only: name [targets.NAME] device or accuracy_on")
    best, worst, difference = spread(places)
    told = f"{best} minus {worst}: {difference.value:.2f} points, 95 % interval [{difference.low:.2f}, {difference.high:.2f}], paired, n = {difference.n}"
    return _Measured(difference.high, f"{len(places)} places; {told}")


def _sizes(tail: TargetResults) -> list[_Measured]:
    """Of each form in which the model ships: the ONNX file, and the IR where the target has one."""
    if tail.export is None:
        return []
    forms = {form: [tail.export / name for name in names] for form, names in MODEL_FORMS.items()}
    return [_Measured(sum(path.stat().st_size for path in paths) / 1000, form) for form, paths in forms.items() if all(path.is_file() for path in paths)]


def _p90s(tail: TargetResults) -> list[_Measured]:
    if tail.bench is None:
        return [_Measured(None, "no bench was run in this build")]
    if tail.bench.not_measured is not None:
        return [_Measured(None, tail.bench.not_measured)]
    measured = []
    throttled = {(it.runtime, it.batch, it.threads): it.told for it in tail.bench.conditions if it.verdict == "throttled" and it.streams is None}
    for latency in tail.bench.latencies:
        if latency.model == "int8" and latency.batch == 1:
            where = f"{latency.runtime}, {latency.threads} thread{'s' if latency.threads != 1 else ''}"
            p90 = latency.p90
            held_back = throttled.get((latency.runtime, latency.batch, latency.threads))
            if held_back is not None:
                measured.append(_Measured(None, f"{where}: {held_back}"))
            elif p90.value_ms is None or p90.high_ms is None:
                measured.append(_Measured(None, f"{where}: {p90.reason or 'no interval of p90'}"))
            else:
                measured.append(
                    _Measured(p90.high_ms, f"{where}: {p90.value_ms:.3g} ms, 95 % interval [{p90.low_ms:.3g}, {p90.high_ms:.3g}], {latency.runs:,} runs")
                )
    return measured or [_Measured(None, "the int8 file was not measured at batch 1")]
