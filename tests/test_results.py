"""The page of results says what the raw figures say."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from kdpipe.robustness.intervals import accuracy, paired_difference

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results_page():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_raw_figures_give(results_page):
    assert (ROOT / "docs" / "results.md").read_text() == results_page.page()


def cell(folder, labels, method, right, *, best, last):
    (folder / labels).mkdir(parents=True, exist_ok=True)
    record = {
        "labels": {"how": labels, "wrong": {"train": [400, 1000], "validation": [40, 100]}},
        "method": {"student": "cnn-small", "epochs": 9, "objective": method},
        "data": {"train_samples": 1000},
        "epochs": 9,
        "best_epoch": 4,
        "validation": {"best": best, "last": last},
        "clean": accuracy(right).model_dump(mode="json"),
        "cpu_seconds": 90.0,
        "machine": {"cpu": "Some CPU"},
    }
    (folder / labels / f"{method}.json").write_text(json.dumps(record))
    np.savez_compressed(folder / labels / f"{method}.npz", clean=right)


def test_methods_for_wrong_labels_are_compared_with_plain_on_the_same_images(results_page, tmp_path):
    plain, elr = np.zeros(200, bool), np.zeros(200, bool)
    plain[:100], elr[20:150] = True, True  # 50 %, 65 %: 50 gained, 20 lost
    cell(tmp_path, "worse", "plain", plain, best=0.4, last=0.31)
    cell(tmp_path, "worse", "elr", elr, best=0.5, last=0.5)
    cell(tmp_path, "aggre", "plain", plain, best=0.4, last=0.4)

    [section] = results_page.noisy_labels_section.sections(tmp_path)

    assert "| objective | `aggre`, 40.0 % wrong | `worse`, 40.0 % wrong |" in section
    assert "| `plain` | 50.0 [43.1, 56.9], n 200 | 50.0 [43.1, 56.9], n 200 |" in section
    found = paired_difference(elr, plain)
    assert f"| `elr` | not measured | 65.0 [58.2, 71.3], n 200<br>+15.0 [+{found.low:.1f}, +{found.high:.1f}] |" in section
    assert "| `plain` | 0.0 (epoch 4 of 9) | 9.0 (epoch 4 of 9) |" in section


def test_without_figures_there_is_no_such_section(results_page, tmp_path):
    assert not list(results_page.noisy_labels_section.sections(tmp_path))


def test_every_raw_file_has_its_table(results_page):
    page = results_page.page()
    records = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    assert records
    assert all(record["command"] in page for record in records)
