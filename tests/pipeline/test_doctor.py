import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline import doctor
from kdpipe.pipeline.doctor import diagnose
from kdpipe.targets.instruction_sets import probe


def test_it_tells_versions_cpu_targets_and_disk(tmp_path: Path) -> None:
    found = diagnose(tmp_path)
    assert found.tools["torch"] == "2.13.0+cpu"
    assert "ruff" not in found.tools
    assert found.instruction_sets == tuple(sorted(probe()))
    assert [target.name for target in found.targets] == ["arm", "arm-a72", "arm-a76", "cpu", "gpu", "npu"]
    assert all(target.cannot_build is None for target in found.targets)
    assert (
        next(target for target in found.targets if target.name == "gpu").cannot_measure
        == "not measured: no device (the target computes on TensorRT, this host has no onnxruntime-tensorrt)"
    )
    assert found.free_bytes > 0
    assert found.writable
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_and_a_store_that_cannot_be_written_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "runtime_version", lambda name: None if name == "openvino" else "1")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("openvino", "scikit-learn") else "1")
    monkeypatch.setattr(doctor, "_writable", lambda project: False)
    found = diagnose(tmp_path)
    assert {target.name: target.cannot_build for target in found.targets} == {
        "arm": None,
        "arm-a72": None,
        "arm-a76": None,
        "cpu": "not installed: openvino",
        "gpu": None,
        "npu": "not installed: openvino",
    }
    assert "openvino is not installed: python -m pip install openvino" in found.warnings
    assert not any("scikit-learn" in warning for warning in found.warnings)
    assert f"cannot write to {tmp_path / '.kdpipe'}: a build would end with exit code 4" in found.warnings


def test_the_command_ends_with_0_and_prints_a_table_or_json(tmp_path: Path, kdpipe: Any) -> None:
    told = kdpipe("doctor", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "instruction sets" in told.stdout
    assert "target npu" in told.stdout
    told = kdpipe("doctor", "--json", folder=tmp_path)
    printed = json.loads(told.stdout)
    expected = replace(diagnose(tmp_path), project=".", free_bytes=printed["free_bytes"])
    assert printed["targets"][0]["name"] == expected.targets[0].name
    assert printed["tools"] == expected.tools
