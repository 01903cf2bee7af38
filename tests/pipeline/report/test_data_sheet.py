"""The sheet of a data check, and what the build's report says of the data."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.kept_check import keep
from kdpipe.pipeline.report.data import data_section
from kdpipe.pipeline.report.data_sheet import headline, render_sheet, summary_rows
from kdpipe.pipeline.report.render import render
from kdpipe.tasks.data.cleaning import Decision, Manifest, cleaned_digest, write_manifest
from kdpipe.tasks.data.inspection.findings import Finding, Inspection, LabelModel, Sample
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit

HOSTILE = "<script>alert(1)</script>"
DIGEST = "ab" * 32


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def _sample(split: Any, index: int, label: int = 0, at: str = "cat/1.png") -> Sample:
    return Sample(split=split, index=index, at=at, label=label)


def _finding(kind: Any, severity: Any, *samples: Sample, **more: Any) -> Finding:
    return Finding(kind=kind, severity=severity, what=f"what of {kind}", do=f"do of {kind}", samples=samples, **more)


def _inspection(*findings: Finding, classes: tuple[str, ...] = ("cat", HOSTILE)) -> Inspection:
    model = LabelModel(what="ridge regression", folds=5, features=400, accuracy=0.9, noise_rate=0.05)
    return Inspection(
        name="pets", digest=DIGEST, classes=classes, shape=(1, 8, 8), counts={"train": (30, 20), "test": (5, 5)}, label_model=model, findings=findings
    )


FINDINGS = (
    _finding("unreadable", "serious", _sample("train", 2)),
    _finding("leak", "serious", *(_sample("train", k) for k in range(8)), _sample("test", 0)),
    _finding("suspected-label", "warning", _sample("train", 3, at=HOSTILE), score=0.8, suggested=1, confidence=0.9),
    _finding("outlier", "note", _sample("test", 4, 1), score=7.25),
)


def _splits() -> dict[Any, RowsSplit]:
    images = np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32)
    return {name: RowsSplit(ArraySamples(images), np.arange(40), np.zeros(40, np.int64)) for name in ("train", "test")}


def _sheet(*findings: Finding, **more: Any) -> Page:
    return Page(render_sheet(_inspection(*findings), _splits(), project="pets", **more))


def test_the_sheet_is_well_formed_needs_no_network_and_escapes_what_users_wrote() -> None:
    page = _sheet(*FINDINGS)

    assert "script" not in {tag for tag, _ in page.elements}
    assert "link" not in {tag for tag, _ in page.elements}
    assert HOSTILE in page.text
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 6 + 1 + 1  # of nine copies six are shown
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert "what of leak; 3 more" in page.text


def test_each_link_of_the_contents_has_its_section() -> None:
    page = _sheet(*FINDINGS)
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {(attributes["href"] or "").removeprefix("#") for tag, attributes in page.elements if tag == "a"}

    assert links <= ids
    assert {"summary", "unusable", "copies", "labels", "outliers", "classes", "how"} == links


def test_a_suspect_shows_given_and_suggested_label_and_where_it_is() -> None:
    text = _sheet(FINDINGS[2]).text

    assert f"cat→ {HOSTILE}, 90\u00a0%train 3{HOSTILE}" in text


def test_an_image_that_cannot_be_read_is_told_and_not_shown() -> None:
    class Broken(RowsSplit):
        def read(self, indices: Any) -> Any:
            raise ConfigError("damaged", at="x", do="y")

    splits = {name: Broken(split.samples, split.rows, split.labels) for name, split in _splits().items()}

    page = Page(render_sheet(_inspection(FINDINGS[2]), splits, project="pets"))

    assert "cannot be shown" in page.text
    assert "img" not in {tag for tag, _ in page.elements}


@pytest.mark.parametrize(
    ("findings", "line", "bad"),
    [
        (FINDINGS, "✗ 2 serious findings: figures or a training would be wrong", True),
        (FINDINGS[2:], "✓ Nothing serious; 1 warning", False),
        (FINDINGS[3:], "✓ Nothing to warn of", False),
    ],
    ids=["serious", "warning", "note"],
)
def test_the_headline_says_how_bad_it_is(findings: tuple[Finding, ...], line: str, bad: bool) -> None:
    assert headline(_inspection(*findings)) == (line, bad)


def test_findings_are_summed_by_kind_and_severity_with_an_example() -> None:
    rows = summary_rows(_inspection(*FINDINGS, FINDINGS[3]))

    assert [(row.severity, row.findings, row.title) for row in rows] == [
        ("serious", 1, "images that cannot be read"),
        ("serious", 1, "images with copies in several splits"),
        ("warning", 1, "suspected labels"),
        ("note", 2, "images unlike the rest"),
    ]
    assert rows[3].example == "test: cat/1.png – what of outlier"
    assert rows[0].do == "do of unreadable"


def test_nothing_found_is_said() -> None:
    assert "Nothing was found." in _sheet().text


def test_the_build_s_report_tells_of_the_check_of_its_data_and_of_no_other(build_folder: Any) -> None:
    build = build_folder.write()
    assert data_section(build) is None
    keep(_inspection(*FINDINGS).model_copy(update={"digest": "cd" * 32}), build.project)
    assert data_section(build) is None

    keep(_inspection(*FINDINGS), build.project)
    page = Page(render(build, (), None))

    assert "✗ 2 serious findings: figures or a training would be wrong" in page.text
    assert "images with copies in several splits" in page.text
    assert {"id": "data"} in [attributes for _, attributes in page.elements]


def test_the_build_s_report_tells_what_a_manifest_left_out(build_folder: Any) -> None:
    build = build_folder.write()
    decisions = (
        Decision(split="train", index=1, at="x", why="leak", source="safe"),
        Decision(split="train", index=2, at="x", label=0, why="suspected-label", source="--relabel"),
    )
    manifest = Manifest(name="pets", digest="12" * 32, decisions=decisions)
    write_manifest(manifest, build.project / "cleaned.json")
    digest = cleaned_digest(manifest.digest, manifest)
    results = {name: replace(result, step=replace(result.step, identity={**result.step.identity, "data": digest})) for name, result in build.results.items()}
    build = replace(build, config={**build.config, "task": {**build.config.get("task", {}), "cleaned": "cleaned.json"}}, results=results)

    section = data_section(build)

    assert section is not None
    assert section.cleaned == "Cleaned by cleaned.json: 1 left out of train, 1 relabelled in train (leak, suspected-label)."
    assert not section.checked
    write_manifest(manifest.model_copy(update={"decisions": ()}), build.project / "cleaned.json")
    changed = data_section(build)
    assert changed is not None
    assert changed.cleaned == "cleaned.json has changed since the build."
