from pathlib import Path

import pytest

from kdpipe.pipeline.config import SECTIONS
from kdpipe.pipeline.reference import option_tables, rewritten
from kdpipe.pipeline.stages import load_stages

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_holds_the_tables_that_the_models_give() -> None:
    text = PAGE.read_text()
    assert rewritten(text, option_tables(load_stages())) == text, "run: python -m kdpipe.pipeline.reference docs/configuration.md"


def test_every_section_and_objective_has_its_table() -> None:
    tables = option_tables(load_stages())
    for section in SECTIONS:
        assert f"### `[{section}" in tables
    for objective in ("kd", "rslad", "pointwise", "hierarchical"):
        assert f'### `objective = "{objective}"`' in tables
    assert "| `epsilon` | number in (0, ∞) |" in tables


def test_what_the_pipeline_fills_in_is_no_key() -> None:
    assert "filled in" not in option_tables(load_stages())
    assert "fills it in" not in option_tables(load_stages())


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        rewritten("text", "tables")
