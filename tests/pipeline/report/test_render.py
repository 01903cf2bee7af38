import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.budgets import Budgets, Verdict, check_budgets
from kdpipe.pipeline.report.render import headline, render, write_report
from kdpipe.stages.file_latency import Measured
from kdpipe.stages.latency_pruning import Attempt, LatencyReport, LatencyStep
from kdpipe.stages.prune import PruningReport
from kdpipe.targets.lint import LintFinding
from kdpipe.targets.measurements import DeviceFacts, Percentile

VOID = {"meta", "img", "br", "link", "input"}
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements in order, with a check that every one is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self._open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u00a0", " "))


def _page(build_folder: Any, target: str | None = None, **limits: float) -> Page:
    build = build_folder.write()
    return Page(render(build, check_budgets(build, {name: Budgets(**limits) for name in build.targets}), target))


def test_the_page_is_well_formed_and_needs_no_network_and_no_script(build_folder: Any) -> None:
    page = _page(build_folder, size_kb=100)
    assert not page.all("script")
    assert not page.all("link")
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert all((link["href"] or "").startswith("#") for link in page.all("a"))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in files("kdpipe.pipeline.report").joinpath("report.css").read_text()


def test_the_verdict_and_the_numbers_stand_before_everything_else(build_folder: Any) -> None:
    text = _page(build_folder, "cpu", size_kb=100, robust_accuracy=50).text
    order = ["All 2 budgets are met", "58.4 kB", "5.3 % of the teacher's 1.09 MB", "96.9 %", "72.8 %", "0.0820 ms", "Through the stages"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_a_drop_is_told_paired_with_the_teacher(build_folder: Any) -> None:
    assert "−1.1 points [−2.1, −0.1] to the teacher, paired" in _page(build_folder, "cpu").text


@pytest.mark.parametrize(
    ("states", "text", "bad"),
    [
        ((), "No budgets are set", False),
        (("met",), "✓ The budget is met", False),
        (("met", "met"), "✓ All 2 budgets are met", False),
        (("met", "missed", "not checkable"), "✗ 1 of 3 budgets missed", True),
        (("met", "not checkable"), "? 1 of 2 budgets could not be checked", True),
    ],
    ids=["none", "one met", "all met", "missed", "not checkable"],
)
def test_the_headline_is_the_verdict(states: tuple[Any, ...], text: str, bad: bool) -> None:
    line = headline([Verdict("size_kb", "cpu", 1.0, "kB", None, state, "") for state in states])
    assert (line.text, line.bad) == (text, bad)


def test_every_section_of_the_design_is_there_and_can_be_reached(build_folder: Any) -> None:
    page = _page(build_folder, size_kb=100)
    headings = {attributes["id"] for attributes in page.all("h2") if "id" in attributes}
    links = {(attributes["href"] or "#")[1:] for attributes in page.all("a")}
    expected = {"stages", "pruning", "epsilon", "corruptions", "samples", "reliability", "latency", "nodes", "rules", "parity", "ptq", "masking", "gaps"}
    expected |= {"training", "provenance"}
    assert expected <= headings
    assert links == headings


def test_a_target_s_report_shows_that_target_alone(build_folder: Any) -> None:
    assert "not measured: no device" not in _page(build_folder, "cpu").text.lower()


def test_what_was_not_measured_is_listed_with_its_reason(build_folder: Any) -> None:
    text = _page(build_folder, "arm", p90_ms=1.0).text
    section = text[text.index("What was not measured, and why") :]
    assert "not measured: no device budget p90_ms of arm; latency, start, memory and node precision on arm" in section
    assert "no black-box attack was asked for" in section


def test_each_rung_of_the_ladder_says_whether_it_held(build_folder: Any) -> None:
    text = _page(build_folder, "arm").text
    assert "twin → onnxruntime 1.32.0 CPU ✓ held 0 of 360 at most 7" in text
    assert "network → twin not judged" in text


def test_a_target_that_ships_the_calibrated_network_says_so(build_folder: Any) -> None:
    build_folder.kept = "ptq"
    assert "arm ships the calibrated network : fine-tuning was no better on validation" in _page(build_folder, "arm").text


def test_pruning_is_told_cut_by_cut_and_layer_by_layer(build_folder: Any) -> None:
    text = _page(build_folder).text
    assert "Whole channels went, 2 times, each time with fine-tuning after it: 1.60 times fewer multiply-accumulates" in text
    assert "distillation – 2.4 M – 77 k cut 1 12 1.9 M 1.26 58 k cut 2 8 1.5 M 1.60 41 k" in text
    assert "body.stem 1 → 1 16 → 12" in text
    assert "body.head – whole its channels are the network's outputs" in text


def test_pruning_by_latency_tells_what_was_foretold_and_measured(build_folder: Any) -> None:
    build = build_folder.write()
    path = build.results["prune"].folder / "pruning.json"
    report = PruningReport.model_validate_json(path.read_bytes())
    before, after = _measured(0.2, 1.0), _measured(0.1, 0.5)
    attempt = Attempt(way="loss per ms", predicted_ms=0.104, measured=after, error=-0.04)
    timed = LatencyReport(
        target="cpu",
        device=DeviceFacts(name="host", cpu="A CPU", architecture="x86_64", instruction_sets=(), cores=2, memory_bytes=1, runtimes={}),
        runtime="onnxruntime 1.32.0",
        batch=1,
        threads=1,
        goal="speedup = 2",
        before=before,
        after=after,
        steps=(LatencyStep(goal_ms=0.1, way="loss per ms", attempts=(attempt,), measured=after, scale=1.0),),
        table="0.json",
        table_entries=3,
    )
    path.write_text(report.model_copy(update={"latency": timed}).model_dump_json())
    text = Page(render(build, (), None)).text
    assert "What went was decided by time: speedup = 2 for target cpu, measured on host (A CPU) in onnxruntime 1.32.0, batch 1, 1 thread." in text
    assert "Unpruned the int8 file takes 0.2 ms [0.19, 0.21]." in text
    assert "cut 1 0.1 0.104 0.1 ms [0.09, 0.11] 2.00 loss per ms" in text


def _measured(ms: float, share: float) -> Measured:
    return Measured(p50=Percentile(value_ms=ms, low_ms=ms - 0.01, high_ms=ms + 0.01), ratio=Percentile(value_ms=share, low_ms=share, high_ms=share), runs=100)


def test_a_build_without_pruning_has_no_such_section(build_folder: Any) -> None:
    build = build_folder.write()
    unpruned = replace(build, results={name: result for name, result in build.results.items() if "prune" not in name})
    page = Page(render(unpruned, (), None))
    assert "pruning" not in {attributes.get("id") for attributes in page.all("h2")}


def test_corruptions_that_were_trained_for_are_told_as_such(build_folder: Any) -> None:
    build = build_folder.write()
    varied = {**build.config, "task": {"kind": "image-classification", "data": "digits", "augment": ["flip", {"name": "noise", "std": 0.1}]}}
    text = Page(render(replace(build, config=varied), (), None)).text
    assert "Training varied the images as gaussian-noise, gaussian-noise-c, shot-noise, speckle-noise do : accuracy under these (†)" in text
    assert "(†), and the mean, is not of the unseen." in text
    assert "gaussian-noise †" in text
    assert "gaussian-blur †" not in text
    untold = Page(render(build, (), None)).text
    assert "Training varied the images" not in untold
    assert "†" not in untold


def test_wrong_labels_made_on_purpose_are_told(build_folder: Any) -> None:
    build = build_folder.write()
    labels = {"how": "symmetric noise, rate 0.4", "wrong": {"train": [432, 1079], "validation": [72, 179]}}
    teacher = build.results["teacher"]
    noisy = replace(teacher, step=replace(teacher.step, identity={**teacher.step.identity, "labels": labels}))
    text = Page(render(replace(build, results={**build.results, "teacher": noisy}), (), None)).text
    assert "Wrong labels: labels were made noisy on purpose (symmetric noise, rate 0.4): 432 of 1,079 training labels" in text
    assert "Wrong labels" not in Page(render(build, (), None)).text


def test_a_file_that_breaks_no_rule_is_told_so(build_folder: Any) -> None:
    assert "cpu: none of the rules of the profile cpu is broken" in _page(build_folder, "cpu").text


def test_a_finding_stands_with_its_node_and_remedy(build_folder: Any) -> None:
    build_folder.findings = (LintFinding(node="head", rule="not-quantized", reason="Gemm runs in float", remedy="put Q/DQ before its input"),)
    assert "not-quantized head Gemm runs in float put Q/DQ before its input" in _page(build_folder, "arm").text


def test_an_attack_that_met_fewer_samples_says_how_many(build_folder: Any) -> None:
    build = build_folder.write()
    path = build.results["score-export@arm"].folder / "scorecards.json"
    cards = json.loads(path.read_text())
    for card in cards:
        card["attacks"][0]["accuracy"]["n"] = 200
    path.write_text(json.dumps(cards))
    assert "worst of fgsm (on 200), pgd-20 at ε = 0.1" in Page(render(build, (), "arm")).text


def test_a_rung_with_logits_that_are_not_finite_is_told_as_such(build_folder: Any) -> None:
    build = build_folder.write()
    path = build.results["export@arm"].folder / "parity.json"
    parity = json.loads(path.read_text())
    parity["rungs"][0] |= {"largest_difference": None, "mean_difference": None}
    path.write_text(json.dumps(parity))
    assert "network → twin not judged" in Page(render(build, (), "arm")).text
    assert "not finite not finite" in Page(render(build, (), "arm")).text


def test_a_failed_masking_check_is_said_in_words(build_folder: Any) -> None:
    text = _page(build_folder, "arm").text
    assert "✗ suspected masking accuracy near 0 at a huge epsilon" in text
    assert "18 checks: 6 passed, 6 failed: robust accuracy is suspect there, 6 could not be checked" in text


def test_hostile_names_are_shown_and_not_run(build_folder: Any) -> None:
    build_folder.name, build_folder.labels = HOSTILE, (HOSTILE, '"><img src=x onerror=alert(1)>', *"23456789")
    build = build_folder.write()
    verdict = Verdict("size_kb", "cpu", 1.0, "kB", 2.0, "missed", HOSTILE)
    page = Page(render(replace(build, command=HOSTILE), [verdict], None))
    assert not page.all("script")
    assert not [image for image in page.all("img") if "onerror" in image]
    assert page.text.count(HOSTILE) >= 4  # title, subtitle, verdict, command, labels


def test_who_cannot_see_the_page_is_told_all_of_it(build_folder: Any) -> None:
    page = _page(build_folder, size_kb=100)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(picture["role"] == "img" for picture in page.all("svg"))
    assert len(page.all("svg")) == len(page.all("desc"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("template", sorted(path.name for path in files("kdpipe.pipeline.report").iterdir() if path.name.endswith(".jinja")))
def test_every_table_of_a_template_begins_with_its_caption(template: str) -> None:
    text = files("kdpipe.pipeline.report").joinpath(template).read_text()
    tables = re.findall(r"<table[^>]*>\s*(<[a-z]+)", text)
    assert tables
    assert set(tables) == {"<caption"}


def test_tables_scroll_in_boxes_that_a_keyboard_reaches(build_folder: Any) -> None:
    page = _page(build_folder, size_kb=100)
    boxes = [attributes for attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table"))
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)


def test_a_build_that_ended_early_has_a_report_that_says_so(build_folder: Any) -> None:
    build_folder.until = "prune"
    text = _page(build_folder, size_kb=100).text
    assert "? 2 of 2 budgets could not be checked" in text
    assert "the build ended before 'export'" in text


def test_the_report_is_written_whole_and_its_path_comes_back(build_folder: Any, tmp_path: Path) -> None:
    path = write_report(build_folder.write(), (), tmp_path / "report.html", None)
    assert path == tmp_path / "report.html"
    assert path.read_text().endswith("</html>\n")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "project"] == ["report.html"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("ground", ["--paper", "--raised"])
def test_text_has_the_contrast_of_wcag_aa(theme: str, ground: str) -> None:
    css = files("kdpipe.pipeline.report").joinpath("report.css").read_text()
    start = css.index(":root {") if theme == "light" else css.index(':root[data-theme="dark"] {')
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", css[start : css.index("}", start)]))
    for ink in ("--ink", "--muted", "--accent", "--warning"):
        assert _contrast(colours[ink], colours[ground]) >= 4.5


def _contrast(first: str, second: str) -> float:
    """Source: WCAG 2.1, contrast ratio of relative luminances."""

    def luminance(colour: str) -> float:
        levels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [level / 12.92 if level <= 0.03928 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_each_cause_stands_with_its_share_and_remedy_and_each_node_with_its_time_and_traffic(build_folder: Any) -> None:
    page = _page(build_folder, "cpu")
    assert "missing-instruction 62 % this CPU has no int8 dot product (VNNI) choose float" in page.text
    assert "– – of a file that held texts only –" in page.text
    assert "node_1 QLinearConv int8 6 % 4.0 2.3 kB 1.0 kB Relu –" in page.text
    assert "takes 0.63 of the float student's time" in page.text
