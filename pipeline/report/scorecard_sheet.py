"""The sheet of an evaluation: one HTML file with the scorecard of `kdpipe eval`, its attacks, its doubts and its gaps."""

import importlib.metadata
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdpipe.foundation.files import write_text
from kdpipe.pipeline.report import numbers, sections
from kdpipe.pipeline.results import Judged

if TYPE_CHECKING:
    from kdpipe.pipeline.evaluation import Evaluation

_FILTERS: Mapping[str, Any] = {"percent": numbers.percent, "percent_with_n": numbers.percent_with_n, "value": numbers.value, "count": numbers.count}


def write_scorecard_sheet(path: Path, evaluation: "Evaluation") -> Path:
    """Write the sheet; it needs no network and no script. Returns `path`."""
    judged = [Judged(card, None, {}) for card in evaluation.scorecards]
    environment = Environment(
        loader=PackageLoader("kdpipe.pipeline.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(_FILTERS)
    page = environment.get_template("scorecard_sheet.html.jinja").render(
        css=files("kdpipe.pipeline.report").joinpath("report.css").read_text(encoding="utf-8"),
        evaluation=evaluation,
        judged=judged,
        doubts=[(it, check) for it in judged for check in it.card.masking if check.passed is False],
        checks=[(it, check) for it in judged for check in it.card.masking],
        epsilon=sections.epsilon_section("", judged, evaluation.settings.strength),
        heat=[heat for it in judged if (heat := sections.heat(it, it.name)) is not None],
        reliability=[picture for it in judged if (picture := sections.reliability(it)) is not None],
        kdpipe=importlib.metadata.version("kdpipe"),
        settings=evaluation.settings.model_dump_json(indent=2),
    )
    write_text(path, page)
    return path
