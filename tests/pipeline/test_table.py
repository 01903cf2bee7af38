import io
import json
from typing import Any

import pytest
from rich.console import Console

from kdpipe.pipeline.table import summary_rows, summary_table


def _printed(build: Any, width: int, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    Console(width=width, file=stream).print(summary_table(build))
    stream.flush()
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 100])
def test_every_model_stands_in_one_row_with_size_accuracy_and_interval(build_folder: Any, width: int) -> None:
    lines = _printed(build_folder.write(), width).splitlines()
    assert all(len(line) <= width for line in lines)
    teacher = next(line for line in lines if line.startswith("teacher"))
    assert teacher.split() == ["teacher", "1,093.0", "98.0", "[96.4,", "98.9]", "75.9", "90.0"]
    int8 = next(line for line in lines if "int8 openvino" in line)
    assert int8.split() == ["int8", "openvino", "58.4", "96.9", "[95.0,", "98.0]", "72.8", "88.9", "0.082", "/", "0.0959"]


def test_latency_without_a_device_says_so_in_the_table(build_folder: Any) -> None:
    printed = _printed(build_folder.write(), 100)
    assert printed.count("not measured: no device") == 1


def test_the_table_says_what_its_sizes_and_latencies_are_of(build_folder: Any) -> None:
    printed = " ".join(_printed(build_folder.write(), 80).split())
    assert "size: weights file of networks and twins, ONNX file of what ships and of ptq; 1 kB = 1000 bytes latency: batch 1, 1 thread" in printed


def test_a_table_without_latencies_speaks_of_none(build_folder: Any) -> None:
    build_folder.measured = ()
    assert "latency: batch" not in _printed(build_folder.write(), 80)


def test_a_terminal_without_unicode_gets_the_same_table(build_folder: Any) -> None:
    assert "int8 onnxruntime" in _printed(build_folder.write(), 80, encoding="ascii")


def test_the_rows_for_machines_hold_the_figures_of_the_table_in_its_order(build_folder: Any) -> None:
    rows = summary_rows(build_folder.write())
    assert [(row["model"], row["target"]) for row in rows[:5]] == [("teacher", None), ("student", None), ("pruned", None), ("twin", "cpu"), ("int8", "cpu")]
    int8 = rows[4]
    assert int8["attack"] == "pgd-20"
    assert int8["attacked"]["value"] == pytest.approx(72.78, abs=0.01)
    assert int8["clean"]["n"] == 540
    assert (int8["p50_ms"], int8["latency_threads"], int8["latency_reason"]) == (0.082, 1, None)
    arm = next(row for row in rows if row["model"] == "int8" and row["target"] == "arm")
    assert (arm["p50_ms"], arm["latency_reason"]) == (None, "not measured: no device")


def test_a_build_that_ended_at_pruning_has_the_shared_rows_alone(build_folder: Any) -> None:
    build_folder.until = "prune"
    build = build_folder.write()
    assert [row["model"] for row in summary_rows(build)] == ["teacher", "student", "pruned"]
    assert "target" not in _printed(build, 80)


def test_a_percentile_that_cannot_be_claimed_is_not_printed_as_a_number(build_folder: Any) -> None:
    build_folder.runs = 40
    build = build_folder.write()
    assert "0.082 / -" in _printed(build, 80)
    assert summary_rows(build)[4]["latency_reason"] == "not claimable: 40 runs, 64 are needed"


def test_a_runtime_that_the_device_lacks_is_the_reason_for_a_missing_latency(build_folder: Any) -> None:
    build = build_folder.write()
    file = build.results["bench@cpu"].folder / "bench.json"
    bench = json.loads(file.read_text())
    bench["latencies"] = [it for it in bench["latencies"] if not it["runtime"].startswith("openvino")]
    file.write_text(json.dumps(bench | {"warnings": ["not measured in openvino: not available on device pi"]}))
    reasons = {row["runtime"].split()[0]: row["latency_reason"] for row in summary_rows(build) if row["model"] == "int8" and row["target"] == "cpu"}
    assert reasons == {"onnxruntime": None, "openvino": "not measured in openvino: not available on device pi"}
