"""What is stored how: schemes, layers in float, and how they were found."""

import json
import re
from pathlib import Path
from typing import Any

from kdpipe.pipeline.report.render import render
from kdpipe.pipeline.results import read_results
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.table import summary_rows
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages.mixed_precision import Drop, MixedPrecision, Trial
from kdpipe.stages.sensitivity import Sensitivity

ORT = "onnxruntime 1.32.0 CPU"
LAYER = "body.layer2.0.conv2"


def _found(outcome: str = "found") -> MixedPrecision:
    bad, good = Drop(value=30.0, low=25.0, high=35.0), Drop(value=0.1, low=-0.4, high=0.9)
    trials = (
        Trial(float_layers=(), size_bytes=58_400, drops={ORT: bad}, accuracy={ORT: 0.68}, kept_to=False),
        Trial(float_layers=(LAYER,), size_bytes=61_000, drops={ORT: good}, accuracy={ORT: 0.97}, kept_to=True),
    )
    row = Sensitivity(layer=LAYER, weights=2304, alone_distance=0.21, alone_accuracy=0.7, without_distance=0.004, without_accuracy=0.97)
    rest = row.model_copy(update={"layer": "body.conv1", "alone_distance": 0.002, "alone_accuracy": 0.97})
    return MixedPrecision.model_validate(
        {
            "limit": 1.0,
            "n": 360,
            "outcome": outcome,
            "float_layers": (LAYER,) if outcome == "found" else (),
            "float_network": good,
            "reference_accuracy": 0.98,
            "all_distance": 0.22,
            "all_accuracy": 0.69,
            "sensitivity_samples": 360,
            "sensitivities": (row, rest) if outcome == "found" else (),
            "trials": trials if outcome == "found" else trials[1:2],
        }
    )


def _written(build_folder: Any, **changed: Any) -> BuildResult:
    """The build with another outcome of its qat steps."""
    build: BuildResult = build_folder.write()
    own = changed.pop("scheme", {})
    for name, result in build.results.items():
        if name.startswith("qat@"):
            path: Path = result.folder / "quantization.json"
            kept = json.loads(path.read_text())
            scheme = {**kept["scheme"], **own}
            path.write_text(json.dumps({**kept, "scheme": scheme, **changed}))
    return build


def _text(build: BuildResult) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render(build, (), None)).replace("\u00a0", " "))


def test_a_target_of_static_int8_throughout_has_no_such_section(build_folder: Any) -> None:
    assert "What is stored how" not in _text(build_folder.write())


def test_the_search_is_told_with_every_file_and_every_layer(build_folder: Any) -> None:
    found = _found()
    text = _text(_written(build_folder, float_layers=[LAYER], mixed_precision=found.model_dump(mode="json")))
    assert f"1 layer stays in float32: {LAYER}" in text
    assert f"1 layer must stay in float: {LAYER} (2 files measured)" in text
    assert f"{ORT}: 30.00 [25.00, 35.00]" in text
    assert f"1: {LAYER} 61.0 kB" in text
    assert "All layers quantized: 22.00 %, accuracy 69.0 % (none: 98.0 %)" in text
    assert "21.00 % 70.0 % 0.40 % 97.0 %" in text


def test_a_search_under_attack_tells_what_each_file_stands(build_folder: Any) -> None:
    found = _found()
    stood = Figure(value=51.0, low=45.2, high=56.8, n=256)
    trials = (found.trials[0], found.trials[1].model_copy(update={"robust": {ORT: stood}}))
    asked = {"trials": trials, "robust_limit": 45.0, "attack": "PGD-20, linf, ε = 0.1", "float_robust": stood}
    text = _text(_written(build_folder, float_layers=[LAYER], mixed_precision=found.model_copy(update=asked).model_dump(mode="json")))
    assert "limit 1 points and 45 % under attack" in text
    assert "Under attack (PGD-20, linf, ε = 0.1; on the file's twin and on the network without rounding, replayed on the file)" in text.replace("&#39;", "'")
    assert f"{ORT}: 51.0 [45.2, 56.8]" in text
    assert "30.00 [25.00, 35.00] not attacked" in text


def test_a_search_that_found_nothing_to_keep_says_so(build_folder: Any) -> None:
    text = _text(_written(build_folder, mixed_precision=_found("out of reach").model_dump(mode="json")))
    assert "no layer stays in float: even without rounding the network is 0.10 points below the teacher, up to 0.90, the limit is 1" in text
    assert "Sensitivity of each layer" not in text


def test_small_weights_are_told_to_be_no_faster(build_folder: Any) -> None:
    text = _text(_written(build_folder, scheme={"kind": "weights-only", "weight_bits": 8}))
    assert "weights in 8-bit integers, arithmetic in float. The runtime widens the weights when it loads the file: it is smaller, not faster." in text


def test_the_shipped_file_is_called_by_its_scheme_and_its_role_stays(build_folder: Any) -> None:
    build = _written(build_folder, scheme={"kind": "float16"})
    tail = next(iter(read_results(build).targets.values()))
    assert tail.shipped == "float16"
    assert {it.name for it in tail.files} == {f"float16 {it.card.runtime.split()[0]}" for it in tail.files}
    rows = [row for row in summary_rows(build) if row["model"] == "int8"]
    assert {row["shipped"] for row in rows} == {"float16"}
    text = _text(build)
    assert "Size of the float16 file" in text
    assert "int8 onnxruntime" not in text
