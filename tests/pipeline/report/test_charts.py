import xml.etree.ElementTree as ET

import pytest

from kdpipe.pipeline.report.curves import Curve, Point, line_chart
from kdpipe.pipeline.report.latencies import latency_rows
from kdpipe.pipeline.report.node_map import node_map
from kdpipe.pipeline.report.reliability import reliability_diagram
from kdpipe.pipeline.report.risk_coverage import risk_coverage_chart
from kdpipe.pipeline.report.staircase import Interval, Stair, accuracy_dots, size_bars
from kdpipe.robustness.scorecard import CoveragePoint, Figure, ReliabilityBin
from kdpipe.targets.measurements import Latency, NodePrecision, Percentile

STAIRS = [
    Stair("teacher", 1_000_000, {"clean": Interval(98, 96, 99), "attacked": Interval(70, 65, 75)}),
    Stair("int8 <script>", 50_000, {"clean": Interval(97, 95, 98)}, accent=True),
]


def _all(picture: str, tag: str, class_: str = "") -> list[ET.Element]:
    return [it for it in ET.fromstring(picture).iter(f"{{http://www.w3.org/2000/svg}}{tag}") if class_ in (it.get("class") or "")]


def _number(element: ET.Element, attribute: str) -> float:
    return float(element.get(attribute) or "nan")


def test_bars_are_as_long_as_the_sizes_and_start_at_zero() -> None:
    teacher, int8 = _all(size_bars(STAIRS), "rect", "bar")
    assert _number(int8, "width") == pytest.approx(_number(teacher, "width") / 20, abs=0.01)
    assert teacher.get("x") == int8.get("x")
    assert "accent" in (int8.get("class") or "")


def test_sizes_are_written_beside_their_bars_with_the_share_of_the_first() -> None:
    values = [(it.text or "").replace("\u00a0", " ") for it in _all(size_bars(STAIRS), "text", "value")]
    assert values == ["1.00 MB", "50.0 kB · 5.0 %"]


def test_dots_stand_at_their_accuracy_with_whiskers_at_the_bounds() -> None:
    picture = accuracy_dots(STAIRS, ["clean", "attacked"])
    zero, hundred = (_number(_all(picture, "line", "grid")[k], "x1") for k in (0, -1))
    whisker = _all(picture, "line", "whisker")[0]
    assert _number(whisker, "x1") == pytest.approx(zero + 0.96 * (hundred - zero), abs=0.02)
    assert _number(whisker, "x2") == pytest.approx(zero + 0.99 * (hundred - zero), abs=0.02)
    assert [_number(it, "cx") for it in _all(picture, "circle", "mark")][1] == pytest.approx(zero + 0.98 * (hundred - zero), abs=0.02)


def test_an_accuracy_that_was_not_measured_has_no_dot() -> None:
    titles = [it.text or "" for it in _all(accuracy_dots(STAIRS, ["clean", "attacked"]), "title")]
    assert [title for title in titles if "attacked" in title] == ["teacher, attacked: 70.0 % [65.0, 75.0]"]


def test_a_hostile_name_is_shown_and_not_run() -> None:
    for picture in (size_bars(STAIRS), accuracy_dots(STAIRS, ["clean"])):
        assert "<script>" not in picture
        assert any(it.text == "int8 <script>" for it in _all(picture, "text", "name"))


def test_a_curve_goes_through_its_points_over_the_common_axes() -> None:
    curve = Curve("int8", (Point(0, 100, 100, 100), Point(0.1, 50, 40, 60), Point(0.2, 0, 0, 0)), accent=True)
    picture = line_chart([curve], title="t", x_axis="epsilon", y_axis="%", mark_x=0.1, mark_label="here")
    drawn = [tuple(map(float, pair.split())) for pair in (_all(picture, "path", "curve")[0].get("d") or "").strip("M").split("L")]
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.02)
    assert y2 > y0
    (rule,) = _all(picture, "line", "rule")
    assert _number(rule, "x1") == pytest.approx(x1, abs=0.02)
    (whisker,) = _all(picture, "line", "whisker")
    assert _number(whisker, "y1") - _number(whisker, "y2") == pytest.approx((y2 - y0) * 0.2, abs=0.05)


def test_a_training_of_one_epoch_can_be_drawn() -> None:
    picture = line_chart([Curve("clean", (Point(1, 80, 80, 80),))], title="t", x_axis="epoch", y_axis="%")
    assert len(_all(picture, "circle", "mark")) == 2  # the point and the legend


def test_reliability_bars_are_as_high_as_the_accuracy_and_empty_bins_have_none() -> None:
    bins = [ReliabilityBin(low=0.0, high=0.5, n=0, confidence=None, accuracy=None), ReliabilityBin(low=0.5, high=1.0, n=8, confidence=0.9, accuracy=0.5)]
    (bar,) = _all(reliability_diagram("int8", bins), "rect", "bar accent")
    assert _number(bar, "height") == pytest.approx(110)
    (confidence,) = _all(reliability_diagram("int8", bins), "line", "confidence")
    assert _number(bar, "y") - _number(confidence, "y1") == pytest.approx(0.4 * 220)


def _latency(model: str, p50: float, first_edge: float = 0.5) -> Latency:
    claimed = Percentile(value_ms=p50, low_ms=p50, high_ms=p50)
    return Latency(
        model=model,  # type: ignore[arg-type]  # one of the three that it may be
        runtime="onnxruntime",
        batch=1,
        threads=1,
        runs=30,
        p50=claimed,
        p90=Percentile(value_ms=None, reason="not claimable"),
        p95=claimed,
        p99=claimed,
        samples_per_second=None,
        histogram_edges_ms=(first_edge * p50, p50, 2 * p50, 4 * p50),
        histogram_counts=(10, 20, 5),
    )


def test_latencies_share_an_axis_on_which_a_factor_is_a_distance() -> None:
    picture = latency_rows([_latency("int8", 1.0), _latency("float", 2.0), _latency("teacher", 4.0)])
    places = [_number(it, "x1") for it in _all(picture, "line", "percentile p50")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)


def test_a_percentile_that_is_not_claimed_has_no_line_but_words() -> None:
    picture = latency_rows([_latency("int8", 1.0)])
    assert not _all(picture, "line", "percentile p90")
    assert any("p90 not claimed" in (it.text or "") for it in _all(picture, "text"))


def test_a_histogram_that_begins_at_zero_can_be_drawn() -> None:
    assert len(_all(latency_rows([_latency("int8", 1.0, first_edge=0.0)]), "path", "area")) == 1


def test_nodes_are_filled_where_they_run_in_int8_and_hollow_where_not() -> None:
    nodes = [
        NodePrecision(name="a", operator="QLinearConv", precision="int8", fused=("Relu",), share=0.75),
        NodePrecision(name="b", operator="Softmax", precision="float32"),
    ]
    picture = node_map(nodes)
    assert [it.get("class") for it in _all(picture, "rect")] == ["cell int8", "cell float"]
    assert [it.text for it in _all(picture, "text")] == ["Co", "So"]
    assert _all(picture, "title")[1].text == "a: QLinearConv with Relu, int8, 75 % of the time"
    assert _all(picture, "desc")[0].text == "1 of 2 nodes run in int8"


def test_runs_far_beyond_the_rest_do_not_squeeze_them_and_are_counted() -> None:
    latency = _latency("int8", 1.0).model_copy(update={"histogram_edges_ms": (0.9, 1.0, 1.1, 50.0, 100.0), "histogram_counts": (500, 490, 9, 1), "runs": 1000})
    picture = latency_rows([latency])
    assert any("1 of 1,000 runs beyond" in (it.text or "") for it in _all(picture, "text"))
    right = max(_number(it, "x2") for it in _all(picture, "line", "base"))
    drawn = [tuple(map(float, pair.split())) for pair in (_all(picture, "path", "area")[0].get("d") or "").strip("MZ").split("L")]
    assert max(x for x, _ in drawn) <= right


def test_epochs_are_ticked_at_whole_numbers() -> None:
    curve = Curve("clean", (Point(1, 80, 80, 80), Point(2, 90, 90, 90)))
    ticks = [it.text for it in _all(line_chart([curve], title="t", x_axis="epoch", y_axis="%", whole_x=True), "text", "tick")]
    assert ticks[-2:] == ["1", "2"]


def test_the_risk_curve_rises_to_the_error_rate_between_its_bounds() -> None:
    points = [CoveragePoint(coverage=c, risk=Figure(value=v, low=v - 1, high=v + 1, n=round(100 * c))) for c, v in ((0.5, 2.0), (0.75, 4.0), (1.0, 10.0))]
    picture = risk_coverage_chart("int8", points, "area 3.1 %")
    heights = [float(mark.get("cy", "nan")) for mark in _all(picture, "circle", "mark accent")]
    assert heights == sorted(heights, reverse=True)  # upwards on the screen
    (rule,) = _all(picture, "line", "rule")
    assert float(rule.get("y1", "nan")) == pytest.approx(heights[-1])
    assert len(_all(picture, "path", "band")) == 1
    assert "the most confident 75 % (n = 75): 4.0 % errors [3.0, 5.0]" in picture


def test_a_model_without_errors_has_a_flat_risk_curve() -> None:
    points = [CoveragePoint(coverage=c, risk=Figure(value=0.0, low=0.0, high=0.0, n=10)) for c in (0.5, 1.0)]
    assert len(_all(risk_coverage_chart("int8", points), "circle", "mark accent")) == 2
