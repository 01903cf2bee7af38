"""An evaluation on the terminal: the figures, the attacks with their budgets, what the masking checks say, what was not measured."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from kdpipe.pipeline.evaluation import Evaluation
from kdpipe.pipeline.report.numbers import percent_with_n
from kdpipe.robustness.scorecard import AttackFigure, MaskingCheck, Scorecard


def figures_table(evaluation: Evaluation) -> Table:
    """One row for each figure, one column for each runtime; attacks with steps, restarts and where they were crafted."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    for card in evaluation.scorecards:
        table.add_column(f"{card.model} {card.runtime or ''}".rstrip(), overflow="fold")
    rows = [_rows(card) for card in evaluation.scorecards]
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_row(name, *(row.get(name, "–") for row in rows))
    return table


def notes(evaluation: Evaluation) -> Iterator[str]:
    """The lines below the table: where the gradients came from, what the checks doubt, and every gap with its reason."""
    settings = evaluation.settings
    yield f"{evaluation.kind} {evaluation.subject}: {evaluation.data}, test split of {evaluation.n}; {settings.norm}, ε = {settings.strength:.4g}"
    yield f"gradients: {evaluation.gradients}"
    for card in evaluation.scorecards:
        for check in card.masking:
            if not check.passed:
                yield f"{_told(check)}{f', {card.runtime}' if card.runtime else ''}: {check.name}: {check.detail}"
    if evaluation.doubtful:
        yield "suspected masking: the robust accuracies above are upper bounds and no more until this is explained"
    for gap in evaluation.not_measured:
        yield f"not measured: {gap.what}: {gap.reason}"


def as_json_value(evaluation: Evaluation) -> dict[str, Any]:
    """`--json`: the evaluation as it is."""
    value: dict[str, Any] = evaluation.model_dump(mode="json")
    return {**value, "doubtful": evaluation.doubtful}


def _rows(card: Scorecard) -> dict[str, str]:
    figures = {"clean": card.clean, **{_attack_name(attack): attack.accuracy for attack in card.attacks}}
    figures |= {"robust (worst of all)": card.robust, "corrupted (mean)": card.corruption_mean, "ECE": card.ece}
    rows = {name: percent_with_n(figure).removeprefix("not measured: ") if figure.value is None else percent_with_n(figure) for name, figure in figures.items()}
    return {**rows, "masking checks": _verdict(card)}


def _attack_name(attack: AttackFigure) -> str:
    budget = f"{attack.steps} step{'' if attack.steps == 1 else 's'}"
    if attack.restarts > 1:
        budget += f" x {attack.restarts} restarts"
    note = f"; {attack.note}" if attack.note else ""
    return f"{attack.name} ({budget}, crafted on {', '.join(attack.crafted_on)}{note})"


def _verdict(card: Scorecard) -> str:
    if not card.masking:
        return "not made"
    counts = [sum(check.passed is verdict for check in card.masking) for verdict in (True, False, None)]
    words = [f"{number} {word}" for number, word in zip(counts, ("passed", "FAILED", "could not be made"), strict=True) if number]
    return ", ".join(words)


def _told(check: MaskingCheck) -> str:
    return "check failed" if check.passed is False else "check not made"
