"""What each section of the report shows, taken from a build's results: pictures, and rows whose figures the template writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report import numbers
from kdpipe.pipeline.report.curves import Curve, Point, line_chart
from kdpipe.pipeline.report.latencies import latency_rows
from kdpipe.pipeline.report.node_map import is_int8, node_map
from kdpipe.pipeline.report.reliability import reliability_diagram
from kdpipe.pipeline.report.risk_coverage import risk_coverage_chart
from kdpipe.pipeline.report.staircase import Interval, Stair, accuracy_dots, size_bars
from kdpipe.pipeline.results import Judged, Results, TargetResults
from kdpipe.robustness.corruption import SEVERITIES
from kdpipe.robustness.intervals import Difference, paired_difference
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages.history import History
from kdpipe.targets.measurements import Explanation, Latency

KINDS = ("clean", "corrupted", "attacked")


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top: `big`, and what stands below it; `measured` False where `big` is a reason."""

    title: str
    big: str
    small: tuple[str, ...]
    measured: bool = True


@dataclass(frozen=True)
class Heat:
    """One model's accuracy per corruption (rows) and severity (columns, 1 to 5; None where it was not asked for)."""

    name: str
    rows: Mapping[str, tuple[Figure | None, ...]]
    mean: Figure
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Epsilon:
    """Robust accuracy against epsilon: the picture, and its figures by epsilon, one for each of `models`."""

    name: str
    picture: Markup
    models: tuple[str, ...]
    rows: Mapping[float, tuple[Figure | None, ...]]


@dataclass(frozen=True)
class Beside:
    """The int8 file of quantization-aware training beside post-training quantization in one runtime; differences are QAT minus PTQ."""

    runtime: str
    qat: Judged
    ptq: Judged
    clean: Difference | None
    robust: Difference | None


@dataclass(frozen=True)
class Nodes:
    """One runtime's explanation with its picture."""

    explanation: Explanation
    picture: Markup
    int8: int


def weakest(files: Sequence[Judged]) -> Judged:
    """The file in the runtime where it is weakest, by accuracy under attack, then clean: its figures stand for the target."""
    return min(files, key=lambda file: (_or_high(file.card.robust), _or_high(file.card.clean)))


def difference(a: Judged, b: Judged | None, kind: str) -> Difference | None:
    """`a` minus `b` on the same samples; None where one of them was not measured on that kind."""
    if b is None or kind not in a.correct or kind not in b.correct:
        return None
    return paired_difference(a.correct[kind], b.correct[kind])


def tiles(results: Results, tail: TargetResults) -> tuple[Tile, ...]:
    """Size, clean accuracy, accuracy under attack, latency of the target's int8 file; nothing where it was not judged."""
    if not tail.files:
        return ()
    file, teacher = weakest(tail.files), results.teacher
    size = max(it.card.size_bytes for it in tail.files)
    against = () if teacher is None else (f"{100 * size / teacher.card.size_bytes:.1f} % of the teacher's {numbers.kilobytes(teacher.card.size_bytes)}",)
    return (
        Tile(f"Size of the {tail.shipped} file", numbers.kilobytes(size), against),
        _accuracy_tile("Clean accuracy", file, teacher, file.card.clean, "clean", ()),
        _accuracy_tile("Accuracy under attack", file, teacher, file.card.robust, "robust", (_attacks_told(file),)),
        _latency_tile(tail),
    )


def staircase(judged: Sequence[Judged]) -> tuple[Markup, Markup]:
    """The two pictures, sizes and accuracies, one row for each of `judged` (at least one)."""
    several = len({it.target for it in judged if it.target}) > 1
    stairs = []
    for it in judged:
        figures = zip(KINDS, (it.card.clean, it.card.corruption_mean, it.card.robust), strict=True)
        accuracies = {kind: _interval(figure) for kind, figure in figures if figure.value is not None}
        name = f"{it.target} {it.name}" if several and it.target else it.name
        stairs.append(Stair(name, it.card.size_bytes, accuracies, accent=it.card.model == "int8"))
    return size_bars(stairs), accuracy_dots(stairs, KINDS)


def epsilon_section(name: str, judged: Sequence[Judged], evaluated: float | None) -> Epsilon | None:
    """Robust accuracy against epsilon for those models that have it, at most six; None where none has. `evaluated`: the epsilon of `[evaluate]`."""
    curves = []
    with_curve = [it for it in judged if it.card.epsilon_curve][:6]
    for it in with_curve:
        points = tuple(Point(p.epsilon, *_bounds(p.accuracy)) for p in it.card.epsilon_curve if p.accuracy.value is not None)
        if points:
            curves.append(Curve(it.name, points, accent=it.card.model == "int8"))
    if not curves:
        return None
    picture = line_chart(
        curves,
        title="Robust accuracy against epsilon",
        x_axis="epsilon, in the input's value range",
        y_axis="accuracy, %",
        mark_x=evaluated,
        mark_label="" if evaluated is None else f"evaluated at ε = {evaluated:.3g}",
    )
    epsilons = sorted({point.epsilon for it in with_curve for point in it.card.epsilon_curve})
    rows = {epsilon: tuple(_at_epsilon(it, epsilon) for it in with_curve) for epsilon in epsilons}
    return Epsilon(name, picture, tuple(it.name for it in with_curve), rows)


def _at_epsilon(judged: Judged, epsilon: float) -> Figure | None:
    return next((point.accuracy for point in judged.card.epsilon_curve if point.epsilon == epsilon), None)


def heat(judged: Judged, name: str, told: tuple[str, ...] = ()) -> Heat | None:
    """The heat table of one model, called `name`, with what is told below it; None where no corruption was asked for."""
    if not judged.card.corruptions:
        return None
    found = {(corruption.name, corruption.severity): corruption.accuracy for corruption in judged.card.corruptions}
    names = dict.fromkeys(corruption.name for corruption in judged.card.corruptions)
    return Heat(name, {name: tuple(found.get((name, severity)) for severity in SEVERITIES) for name in names}, judged.card.corruption_mean, told)


def reliability(judged: Judged) -> Markup | None:
    """The reliability diagram of one model; None where it has no bins."""
    if not judged.card.reliability:
        return None
    return reliability_diagram(judged.name, judged.card.reliability, f"ECE {numbers.percent(judged.card.ece)}")


def risk_coverage(judged: Judged) -> Markup | None:
    """Risk against coverage of one model; None where it was not measured (older scorecards)."""
    points = [point for point in judged.card.risk_coverage if point.risk.value is not None]
    return risk_coverage_chart(judged.name, points, f"area {numbers.percent(judged.card.aurc)}") if points else None


def latency_charts(tail: TargetResults) -> tuple[tuple[str, Markup], ...]:
    """A picture for each runtime, batch and thread count that has histograms, with its caption; batch 1 with the fewest threads first."""
    if tail.bench is None:
        return ()
    groups: dict[tuple[str, int, int], list[Latency]] = {}
    for latency in tail.bench.latencies:
        if latency.histogram_counts:
            groups.setdefault((latency.runtime, latency.batch, latency.threads), []).append(latency)
    ordered = sorted(groups.items(), key=lambda item: item[0][1:])
    return tuple((f"{runtime}, batch {batch}, {_threads(threads)}", latency_rows(group, tail.shipped)) for (runtime, batch, threads), group in ordered)


def nodes(tail: TargetResults) -> tuple[Nodes, ...]:
    """The node precision map of each runtime that explains itself."""
    if tail.bench is None:
        return ()
    return tuple(Nodes(it, node_map(it.nodes), sum(map(is_int8, it.nodes))) for it in tail.bench.explanations if it.nodes)


def beside(tail: TargetResults) -> tuple[Beside, ...]:
    """QAT and PTQ by runtime, for those runtimes that have both."""
    pairs = [(qat, ptq) for qat in tail.files for ptq in tail.ptq if qat.card.runtime == ptq.card.runtime]
    return tuple(Beside(qat.card.runtime or "", qat, ptq, difference(qat, ptq, "clean"), difference(qat, ptq, "robust")) for qat, ptq in pairs)


def histories(results: Results, targets: Sequence[str]) -> tuple[tuple[str, Markup | None, str], ...]:
    """Of each training of the shared steps and of `targets`: name, picture of validation by epoch (None for one epoch alone), outcome in words."""
    shown: list[tuple[str, Markup | None, str]] = []
    for step, trainings in results.histories.items():
        if step.partition("@")[2] in ("", *targets):
            for history in trainings:
                picture = _history_chart(history) if len(history.epochs) > 1 else None
                shown.append((history.label if len(trainings) > 1 else step, picture, _history_told(history)))
    return tuple(shown)


def _history_chart(history: History) -> Markup:
    def curve(name: str, values: Sequence[float | None], *, accent: bool = False) -> Curve | None:
        points = tuple(Point(record.epoch, 100 * v, 100 * v, 100 * v) for record, v in zip(history.epochs, values, strict=True) if v is not None)
        return Curve(name, points, accent) if points else None

    curves = [
        curve("clean", [record.validation.clean_accuracy for record in history.epochs]),
        curve("under PGD-10", [record.validation.robust_accuracy for record in history.epochs], accent=True),
    ]
    return line_chart(
        [it for it in curves if it is not None],
        title=f"Validation accuracy of {history.label} by epoch",
        x_axis="epoch",
        y_axis="validation accuracy, %",
        mark_x=history.best_epoch,
        mark_label="kept",
        mark_low=True,
        whole_x=True,
    )


def _history_told(history: History) -> str:
    best = history.best.validation
    robust = "" if best.robust_accuracy is None else f", {100 * best.robust_accuracy:.1f} % under PGD-10"
    early = ", stopped early" if history.stopped_early else ""
    kept = f"kept epoch {history.best_epoch} by {history.select_by}: {100 * best.clean_accuracy:.1f} % clean{robust} on validation"
    return f"{history.objective}, {len(history.epochs)} epoch{'' if len(history.epochs) == 1 else 's'}{early}; {kept}"


def _accuracy_tile(title: str, file: Judged, teacher: Judged | None, figure: Figure, kind: str, more: tuple[str, ...]) -> Tile:
    if figure.value is None:
        return Tile(title, "not measured", (figure.reason or "no reason was recorded",), measured=False)
    small = [f"95 % interval{numbers.interval(figure, 1)}, n{numbers.NBSP}={numbers.NBSP}{numbers.count(figure.n)}"]
    paired = difference(file, teacher, kind)
    if paired is not None:
        small.append(f"{numbers.points(paired.value, paired.low, paired.high)} to the teacher, paired")
    return Tile(title, f"{numbers.decimal(figure.value, 1)} %", (*small, *more))


def _attacks_told(file: Judged) -> str:
    """The attacks that `robust` is the worst of; one that met fewer of the samples says how many."""
    attacks, all_of_them = file.card.attacks, file.card.robust.n
    told = [attack.name if attack.accuracy.n == all_of_them else f"{attack.name} (on {numbers.count(attack.accuracy.n)})" for attack in attacks]
    return f"worst of {', '.join(told)} at ε = {', '.join(f'{e:.3g}' for e in sorted({attack.epsilon for attack in attacks}))}"


def _latency_tile(tail: TargetResults) -> Tile:
    title = "Latency p50, batch 1"
    if tail.bench is None or tail.bench.not_measured is not None:
        why = "no bench was run" if tail.bench is None else (tail.bench.not_measured or "").removeprefix("not measured: ")
        return Tile(title, "not measured", (why,), measured=False)
    own = [it for it in tail.bench.latencies if it.model == "int8" and it.batch == 1 and it.p50.value_ms is not None]
    if not own:
        return Tile(title, "not claimable", ("no p50 with enough runs behind it",), measured=False)
    slowest = max(own, key=lambda it: it.p50.value_ms or 0)
    ratio = slowest.ratio_to_float
    setting = f"{slowest.runtime}, {_threads(slowest.threads)}"
    told = [f"p90 {numbers.latency(slowest.p90)}", setting if len(own) == 1 else f"slowest of {len(own)} settings: {setting}"]
    if ratio is not None and ratio.value_ms is not None:
        told.append(f"{numbers.significant(ratio.value_ms)} × the float student's")
    return Tile(title, numbers.milliseconds(slowest.p50.value_ms), tuple(told))


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _or_high(figure: Figure) -> float:
    return 101.0 if figure.value is None else figure.value


def _interval(figure: Figure) -> Interval:
    return Interval(*_bounds(figure))


def _bounds(figure: Figure) -> tuple[float, float, float]:
    value = figure.value or 0.0
    return value, value if figure.low is None else figure.low, value if figure.high is None else figure.high
