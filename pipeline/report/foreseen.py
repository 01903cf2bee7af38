"""What was expected of int8's speed before anything was trained, beside what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.pipeline.results import TargetResults
from kdpipe.pipeline.steps import BuildResult
from kdpipe.targets.expectation import Expectation, outlook_of
from kdpipe.targets.measurements import Latency
from kdpipe.targets.runtimes.runtime import runtime_of


@dataclass(frozen=True)
class Foreseen:
    """Both in words, and whether they agree: None where nothing was measured, or nothing was claimed."""

    expected: str
    measured: str
    agrees: bool | None


def foreseen(build: BuildResult, tail: TargetResults) -> Foreseen | None:
    """For the target of `tail`; None where the build is older than expectations."""
    told = next((each for each in build.expectations if each["target"] == tail.name), None)
    if told is None:
        return None
    expectation = _expectation(told)
    found = [it for it in tail.bench.latencies if it.model == "int8" and it.batch == 1] if tail.bench is not None else []
    alone = [it for it in found if it.threads == min(each.threads for each in found)]
    ratios = {runtime_of(it.runtime): it for it in alone if it.ratio_to_float is not None and it.ratio_to_float.value_ms is not None}
    if not ratios:
        reason = (tail.bench.not_measured if tail.bench is not None else None) or "not measured"
        return Foreseen(expectation.told, reason, None)
    measured = ", ".join(f"{name} {_ratio(it)} of float's time" for name, it in ratios.items())
    return Foreseen(expectation.told, f"{measured} (batch 1, {alone[0].threads} thread{'s' if alone[0].threads > 1 else ''})", _agrees(expectation, ratios))


def _expectation(told: Mapping[str, Any]) -> Expectation:
    return Expectation(**{**told, "ratios": dict(told["ratios"]), "reasons": tuple(told["reasons"])})


def _ratio(latency: Latency) -> str:
    ratio = latency.ratio_to_float
    assert ratio is not None
    return f"{ratio.value_ms:.2f} [{ratio.low_ms:.2f}, {ratio.high_ms:.2f}]"


def _agrees(expectation: Expectation, ratios: Mapping[str, Latency]) -> bool | None:
    """None where nothing was claimed."""
    if expectation.outlook == "not known":
        return None
    measured = (it.ratio_to_float.value_ms for it in ratios.values() if it.ratio_to_float is not None and it.ratio_to_float.value_ms is not None)
    return expectation.outlook == outlook_of(measured)
