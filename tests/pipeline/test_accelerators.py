from types import SimpleNamespace
from typing import Any

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.pipeline.accelerators import require_accelerator
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.profile import load_profile


def target(profile: str, device: str | None) -> Any:
    return SimpleNamespace(name=profile, device=device, profile=load_profile(profile, at="test"))


def seen(**runtimes: str) -> Any:
    facts = LocalDevice().facts().model_copy(update={"name": "box", "runtimes": runtimes})
    return {"box": SimpleNamespace(facts=facts)}


@pytest.mark.parametrize(
    ("profile", "runtime", "do"),
    [("gpu", "onnxruntime-tensorrt", "on a machine with an NVIDIA GPU, CUDA and TensorRT"), ("npu", "openvino-npu", "on a machine with an Intel NPU")],
)
def test_this_host_under_a_name_is_asked_for_the_accelerator(profile: str, runtime: str, do: str) -> None:
    if runtime in LocalDevice().facts().runtimes:
        pytest.skip(f"this host has {runtime}")
    with pytest.raises(UnavailableError) as caught:
        require_accelerator(target(profile, "here"), {})
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.message.startswith(f"device here cannot run {runtime}: its ")
    assert problem.at == "device here"
    assert problem.do is not None
    assert problem.do.startswith(do)


def test_a_device_that_was_reached_is_judged_by_what_it_told() -> None:
    require_accelerator(target("gpu", "box"), seen(**{"onnxruntime": "1.32.0", "onnxruntime-tensorrt": "1.32.0"}))
    with pytest.raises(UnavailableError, match=r"device box cannot run onnxruntime-tensorrt: its onnxruntime 1\.32\.0 has onnxruntime"):
        require_accelerator(target("gpu", "box"), seen(onnxruntime="1.32.0"))


def test_an_accelerator_s_runtime_that_is_too_old_is_told_with_the_range() -> None:
    with pytest.raises(UnavailableError, match=r"device box has openvino-npu 2024\.1, >=2025\.2 is needed"):
        require_accelerator(target("npu", "box"), seen(**{"openvino": "2024.1", "openvino-npu": "2024.1"}))


@pytest.mark.parametrize(("profile", "device"), [("gpu", None), ("npu", None), ("cpu", "here"), ("arm", "here")])
def test_without_a_device_or_on_a_cpu_nothing_is_asked(profile: str, device: str | None) -> None:
    require_accelerator(target(profile, device), {})
