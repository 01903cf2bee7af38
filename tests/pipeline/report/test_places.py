from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.foundation.files import write_json
from kdpipe.pipeline.budgets import Budgets, check_budgets
from kdpipe.pipeline.report.places import places
from kdpipe.pipeline.report.render import render
from kdpipe.pipeline.results import read_results
from kdpipe.robustness.intervals import accuracy
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages.device_quality import DeviceQuality
from kdpipe.targets.measurements import DeviceFacts


@pytest.fixture
def build(build_folder: Any) -> Any:
    """A build whose first target was judged on two devices: as on this host, and with a tenth of the right samples lost."""
    made = build_folder.write()
    bench: Path = made.results[f"bench@{made.targets[0]}"].folder
    same = build_folder.correct("int8", None)["clean"]
    lost = same.copy()
    lost[np.flatnonzero(lost)[:54]] = False
    qualities, arrays = [], {}
    for name, correct, agreement in (("a72", same, accuracy(same == same)), ("<hsw>", lost, Figure(value=None, reason="not measured: not here"))):
        facts = DeviceFacts(name=name, kind="emulated", cpu="chip & co", architecture="aarch64", instruction_sets=(), cores=1, memory_bytes=1, runtimes={})
        runtime = "onnxruntime 1.32.0 CPU"
        largest = None if agreement.value is None else 0.25
        qualities.append(DeviceQuality(device=facts, runtime=runtime, clean=accuracy(correct), agreement=agreement, largest_difference=largest))
        arrays[f"{name}/{runtime}/clean"] = correct
    write_json(bench / "device_quality.json", {"qualities": [it.model_dump(mode="json") for it in qualities]})
    np.savez(bench / "device_correct.npz", **arrays)
    return made


def test_every_place_has_a_row_and_the_spread_its_verdict(build: Any) -> None:
    name = build.targets[0]
    verdicts = check_budgets(build, {name: Budgets(device_spread=3.0)})
    found = places(read_results(build).targets[name], verdicts)
    assert found is not None
    assert [row.where for row in found.places] == ["this host", "this host", "a72", "<hsw>"]
    assert [row.largest_difference for row in found.places] == [None, None, 0.25, None]
    assert found.verdict is not None
    assert found.verdict.state == "missed"
    assert "minus onnxruntime on <hsw>" in found.told
    assert found.picture.count('class="whisker"') == 4
    assert "&lt;hsw&gt;, onnxruntime" in found.picture


def test_a_target_that_no_device_judged_has_no_such_section(build: Any) -> None:
    other = build.targets[1]
    assert places(read_results(build).targets[other], ()) is None
    assert 'id="places"' not in render(build, (), other)


def test_the_page_shows_the_matrix_escaped_and_says_where_no_budget_is_set(build: Any) -> None:
    page = render(build, (), build.targets[0])
    assert '<a href="#places">Devices</a>' in page
    section = page[page.index('<h2 id="places">') : page.index('<h2 id="latency">')]
    assert "&lt;hsw&gt;" in section
    assert "<hsw>" not in section
    assert "chip &amp; co, aarch64" in section
    assert "not measured: not here" in section
    assert "No budget device_spread is set." in section
