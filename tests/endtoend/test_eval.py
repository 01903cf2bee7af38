"""`kdpipe eval` on the bundle of a real build: asked for nothing else, it says what the build said."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def told(kdpipe):
    def evaluated(*arguments):
        result = kdpipe("eval", *map(str, arguments), "--json")
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    return evaluated


def test_the_bundles_own_figures_come_again_and_without_its_store_it_is_judged_as_any_file(undisturbed, tmp_path, told):
    bundle = undisturbed.folder / "dist" / "small" / "cpu"
    cards = json.loads((bundle / "scorecard.json").read_text())["scorecards"]
    built = {card["runtime"]: card for card in cards if card["model"] == "int8"}
    again = told(bundle, "--decision-queries", 0)
    assert again["kind"] == "bundle"
    assert again["gradients"] == "replayed from the build's own networks in the project's store: twin, pruned, student, teacher"
    assert {card["runtime"]: card for card in again["scorecards"]} == built
    shutil.copytree(bundle, tmp_path / "bundle")
    alone = told(tmp_path / "bundle", "--decision-queries", 60, "--runtime", "onnxruntime")
    assert alone["gradients"].startswith("a differentiable twin of the file's graph, straight through rounding")
    (card,) = alone["scorecards"]
    assert card["clean"] == built[card["runtime"]]["clean"]
    assert [attack["crafted_on"][0] for attack in card["attacks"]] == ["twin", "twin", "file", "file"]
