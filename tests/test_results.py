"""The page of results says what the raw figures say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results_page():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_raw_figures_give(results_page):
    assert (ROOT / "docs" / "results.md").read_text() == results_page.page()


def test_every_raw_file_has_its_table(results_page):
    page = results_page.page()
    records = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    assert records
    assert all(record["command"] in page for record in records)
