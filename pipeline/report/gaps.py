"""What was not measured, and why: gathered from every place where a figure is missing, one line a reason."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kdpipe.pipeline.budgets import Verdict
from kdpipe.pipeline.results import Judged, Results, TargetResults
from kdpipe.targets.measurements import Bench, Latency


@dataclass(frozen=True)
class Gap:
    """Figures that are missing for one reason."""

    what: tuple[str, ...]
    why: str


def gaps(results: Results, verdicts: Iterable[Verdict], targets: Iterable[str]) -> tuple[Gap, ...]:
    """The missing figures of the shared models and of `targets`, grouped by reason, in the order of the report."""
    wanted = tuple(targets)
    found: dict[str, list[str]] = {}
    for what, why in _missing(results, verdicts, wanted):
        found.setdefault(why, []).append(what)
    return tuple(Gap(tuple(dict.fromkeys(what)), why) for why, what in found.items())


def _missing(results: Results, verdicts: Iterable[Verdict], targets: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for verdict in verdicts:
        if verdict.state == "not checkable" and verdict.target in targets:
            yield f"budget {verdict.name} of {verdict.target}", verdict.reason
    for judged in results.judged:
        if judged.target is None or judged.target in targets:
            yield from _of_model(judged)
    for name in targets:
        yield from _of_target(results.targets[name])


def _of_model(judged: Judged) -> Iterator[tuple[str, str]]:
    card, where = judged.card, f"{judged.name} ({judged.target})" if judged.target else judged.name
    named = [("clean accuracy", card.clean), ("NLL", card.nll), ("ECE", card.ece)]
    named += [("accuracy under attack", card.robust), ("accuracy under corruption", card.corruption_mean)]
    named += [(f"accuracy under {attack.name}", attack.accuracy) for attack in card.attacks]
    named += [(f"accuracy under {corruption.name} {corruption.severity}", corruption.accuracy) for corruption in card.corruptions]
    named += [(f"robust accuracy at ε = {point.epsilon:g}", point.accuracy) for point in card.epsilon_curve]
    for what, figure in named:
        if figure.value is None:
            yield f"{what} of {where}", figure.reason or "no reason was recorded"
    for check in card.masking:
        if check.passed is None:
            yield f"masking check '{check.name}' of {where}", check.detail


def _of_target(tail: TargetResults) -> Iterator[tuple[str, str]]:
    if tail.export is None:
        yield f"the {tail.shipped} file for {tail.name}", "the build ended before 'export'"
    if tail.export is not None and not tail.files:
        yield f"accuracy of the {tail.shipped} file for {tail.name}", "the build ended before it was scored"
    if tail.unsuited is not None:
        clean = "robust and corrupted accuracy" if tail.on_suited_devices else "accuracy"
        yield f"{clean} of the {tail.shipped} file for {tail.name} on its chip (what is shown is of this host)", tail.unsuited
    for runtime, reason in tail.unavailable.items():
        yield f"accuracy of the {tail.shipped} file for {tail.name} in {runtime}", reason
    if tail.bench is None:
        yield f"latency, start, memory and node precision on {tail.name}", "no bench was run"
        return
    if tail.bench.not_measured is not None:
        yield f"latency, start, memory and node precision on {tail.name}", tail.bench.not_measured
    for latency in tail.bench.latencies:
        yield from _of_latency(latency, tail.name)
    if tail.bench.energy_not_measured is not None:
        yield f"energy on {tail.name}", tail.bench.energy_not_measured
    yield from _of_device(tail.bench, tail.name)


def _of_latency(latency: Latency, target: str) -> Iterator[tuple[str, str]]:
    where = f"{latency.model}, {latency.runtime}, batch {latency.batch}, {latency.threads} threads ({target})"
    for name, percentile in (("p50", latency.p50), ("p90", latency.p90), ("p95", latency.p95), ("p99", latency.p99)):
        if percentile.value_ms is None:
            yield f"{name} of {where}", percentile.reason or "no reason was recorded"


def _of_device(bench: Bench, target: str) -> Iterator[tuple[str, str]]:
    if bench.device is not None:
        for what, value in (("clock governor", bench.device.governor), ("clock", bench.device.clock_mhz), ("temperature", bench.device.temperature_celsius)):
            if value is None:
                yield f"{what} of {bench.device.name} ({target})", "the machine does not tell"
