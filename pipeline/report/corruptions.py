"""What the report says of corruptions beside their cells: the error of each, the error against the teacher's, and which ones training has seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdpipe.pipeline.config import DEFAULT_TASK, task_model
from kdpipe.pipeline.report.numbers import percent_with_n
from kdpipe.pipeline.results import Judged
from kdpipe.pipeline.steps import BuildResult
from kdpipe.robustness.corruption import SEVERITIES
from kdpipe.robustness.corruption_error import Cells, corruption_error
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages.objectives.configured import NAME_KEY, objective_class

_SEED = 0
_TRAININGS = ("teacher", "distill")
_INDICES = "indices/corruption"


def corruptions_told(judged: Judged, reference: Judged | None) -> tuple[str, ...]:
    """Sentences below the table of one model: its worst corruption, and its error against the reference, where that is another model."""
    told = [errors_told(judged)]
    if reference is not None and judged is not reference:
        told.append(error_against(judged, reference))
    return tuple(sentence for sentence in told if sentence is not None)


def errors_told(judged: Judged) -> str | None:
    """Mean error and worst corruption in one sentence; None where no error by corruption was kept."""
    known = [figure for figure in judged.card.corruption_types if figure.error.value is not None]
    if not known:
        return None
    worst = max(known, key=lambda figure: figure.error.value or 0.0)
    return f"Worst: {worst.name}, error {percent_with_n(worst.error)} in the mean of its severities."


def error_against(judged: Judged, reference: Judged) -> str | None:
    """mCE and relative mCE of a model against a reference in one sentence; None where the two were not asked the same."""
    ours, theirs = _cells(judged), _cells(reference)
    indices = reference.correct.get(_INDICES)  # the same for all models of a build
    if not ours or ours.keys() != theirs.keys() or indices is None or "clean" not in judged.correct:
        return None
    error = corruption_error(ours, judged.correct["clean"][indices], theirs, reference.correct["clean"][indices], seed=_SEED)
    if error.mean.value is None:
        return f"Error against the {reference.name}'s {error.mean.reason}."
    relative = error.relative.reason if error.relative.value is None else _bounded(error.relative)
    return f"Error against the {reference.name}'s, which is 100: mCE {_bounded(error.mean)}; relative to the clean error {relative}."


def trained_corruptions(build: BuildResult) -> tuple[str, ...]:
    """The corruptions that augmentations and objectives of the build train for, where these can tell."""
    values = build.config.get("task", {"data": "unknown"})
    task = task_model(values.get("kind", DEFAULT_TASK), at="[task] kind").model_validate(values)
    told: list[str] = list(getattr(task, "trained_corruptions", ()))
    for section in _TRAININGS:
        told += _by_objective(build.config.get(section, {}))
    return tuple(dict.fromkeys(told))


def is_trained(name: str, trained: Sequence[str]) -> bool:
    """Whether a corruption is among them, under its own name or that of a file (`gaussian_noise`)."""
    hyphened = name.replace("_", "-")
    return hyphened in trained or f"{hyphened}-c" in trained


def _by_objective(section: Mapping[str, Any]) -> tuple[str, ...]:
    name = section.get(NAME_KEY)
    if not isinstance(name, str):
        return ()
    kind = objective_class(name, at=NAME_KEY)
    return kind.model_validate({key: value for key, value in section.items() if key in kind.model_fields}).trained_corruptions


def _cells(judged: Judged) -> Cells:
    cells = ((figure.name, figure.severity) for figure in judged.card.corruptions if figure.severity in SEVERITIES)
    return {(name, severity): judged.correct[key] for name, severity in cells if (key := f"corruption/{name}-{severity}") in judged.correct}


def _bounded(figure: Figure) -> str:
    return f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"
