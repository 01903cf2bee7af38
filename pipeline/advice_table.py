"""An advice for people, as tables and sentences, and for machines, as one JSON value."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kdpipe.pipeline.advice import Advice
from kdpipe.pipeline.printing import table
from kdpipe.pipeline.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

_BUSY = 0.8
"""share of a processor below which the machine is told to be busy"""


def choices_table(advice: Advice) -> "Table":
    """What is proposed, why, and on what figures."""
    rows = table("rule", "proposed", "because", "rests on")
    for choice in advice.choices:
        rows.add_row(choice.rule, choice.what, choice.because, choice.evidence)
    return rows


def cost_table(advice: Advice) -> "Table":
    """What it costs, part by part; the last row is the sum."""
    rows = table("part", "about", "from", "to", "counted from")
    for part in advice.cost.parts:
        rows.add_row(part.name, duration(part.likely), duration(part.low), duration(part.high), part.how)
    cost = advice.cost
    rows.add_row("the whole build", duration(cost.likely), duration(cost.low), duration(cost.high), f"a trial of {duration(cost.trial_seconds)}")
    return rows


def notes(advice: Advice) -> list[str]:
    """What stands beside the tables."""
    cost, machine = advice.cost, advice.machine
    teacher, student = cost.step_seconds
    threads = f"{machine.cores} cores, {machine.threads} {'thread' if machine.threads == 1 else 'threads'}"
    said = [
        f"{threads}; a step of the teacher {1000 * teacher:.0f} ms, of the student {1000 * student:.0f} ms",
        f"not included: {', '.join(cost.not_included)}",
    ]
    if cost.share < _BUSY:
        load = "" if machine.load is None else f" (load {machine.load:.1f} on {machine.cores} cores)"
        said.append(
            f"this machine is busy{load}: the trial got {100 * cost.share:.0f} % of its processors; alone the build would take about {duration(cost.alone)}"
        )
    return said


def as_json_value(advice: Advice) -> dict[str, Any]:
    """The whole advice, with the proposed file as text."""
    cost = advice.cost
    return {
        "data": asdict(advice.facts),
        "machine": asdict(advice.machine),
        "minutes": advice.minutes,
        "choices": [asdict(choice) for choice in advice.choices],
        "cost": {
            "seconds": {"likely": cost.likely, "low": cost.low, "high": cost.high, "alone": cost.alone},
            "parts": [asdict(part) for part in cost.parts],
            "trial_seconds": cost.trial_seconds,
            "step_seconds": {"teacher": cost.step_seconds[0], "student": cost.step_seconds[1]},
            "processor_share": cost.share,
            "not_included": list(cost.not_included),
        },
        "toml": advice.toml,
        "written": None if advice.written is None else str(advice.written),
    }
