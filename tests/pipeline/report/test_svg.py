import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.report.svg import MARKERS, LogScale, Scale, chart, element, label, marker, number, path


def test_a_scale_maps_its_ends_to_its_ends_and_the_middle_between() -> None:
    scale = Scale(0, 100, 40, 240)
    assert (scale(0), scale(50), scale(100)) == (40, 140, 240)


def test_a_scale_may_run_upwards_as_pictures_do() -> None:
    assert Scale(0, 1, 200, 0)(0.25) == 150


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_inside_and_not_too_many(low: float, width: float, about: int) -> None:
    ticks = Scale(low, low + width, 0, 1).ticks(about)
    assert len(ticks) <= about + 1
    slack = 1e-6 * width + 1e-9 * abs(low)
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)


def test_ticks_of_a_percent_axis_are_the_twenties() -> None:
    assert Scale(0, 100, 0, 1).ticks(5) == [0, 20, 40, 60, 80, 100]


def test_equal_factors_are_equal_distances_on_a_logarithmic_scale() -> None:
    scale = LogScale(0.1, 10, 0, 200)
    assert (scale(0.1), scale(1), scale(10)) == pytest.approx((0, 100, 200))
    assert scale.ticks() == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert LogScale(0.01, 100, 0, 1).ticks() == [0.01, 0.1, 1, 10, 100]


@pytest.mark.parametrize(("value", "text"), [(12.0, "12"), (12.5, "12.5"), (0.256, "0.26"), (-0.001, "0"), (100.0, "100")], ids=str)
def test_coordinates_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_hostile_text_stays_text() -> None:
    picture = chart(10, "</title><script>x</script>", 'a "quoted" & bad', label(0, 0, "<b>7</b>"), element("rect", class_='"><script>'))
    root = ET.fromstring(picture)
    assert "<script" not in picture
    assert root[0].text == "</title><script>x</script>"
    assert root[2].text == "<b>7</b>"


@pytest.mark.parametrize("shape", MARKERS)
def test_every_marker_is_centred_and_tells_its_title(shape: str) -> None:
    drawn = ET.fromstring(marker(shape, 10, 20, "mark", "teacher: 98.0 %"))
    assert drawn[0].text == "teacher: 98.0 %"
    if drawn.tag == "circle":
        assert (drawn.get("cx"), drawn.get("cy")) == ("10", "20")
    else:
        corners = [tuple(map(float, pair.split())) for pair in (drawn.get("d") or "").strip("MZ").split("L")]
        assert sum(x for x, _ in corners) / len(corners) == pytest.approx(10, abs=0.1)


def test_a_path_goes_through_its_points() -> None:
    assert 'd="M0 1L2.5 3"' in path([(0, 1), (2.5, 3)], "curve")


def test_a_chart_says_what_it_shows_to_who_cannot_see_it() -> None:
    root = ET.fromstring(chart(50, "Sizes", "teacher 1 MB"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert (root[0].tag, root[0].text, root[1].tag, root[1].text) == (f"{space}title", "Sizes", f"{space}desc", "teacher 1 MB")
