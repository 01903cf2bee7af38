from types import SimpleNamespace
from typing import Any

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.pipeline.device_runtimes import require_runtimes_there
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.profile import load_profile


def target(profile: str, device: str | None, *accuracy_on: str) -> Any:
    return SimpleNamespace(name=profile, device=device, accuracy_on=accuracy_on, profile=load_profile(profile, at="test"))


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
        require_runtimes_there(target(profile, "here"), {})
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.message.startswith(f"device here cannot run {runtime}: its ")
    assert problem.at == "device here"
    assert problem.do is not None
    assert problem.do.startswith(do)


def test_a_device_that_was_reached_is_judged_by_what_it_told() -> None:
    require_runtimes_there(target("gpu", "box"), seen(**{"onnxruntime": "1.32.0", "onnxruntime-tensorrt": "1.32.0"}))
    with pytest.raises(UnavailableError, match=r"device box cannot run onnxruntime-tensorrt: its onnxruntime 1\.32\.0 has onnxruntime"):
        require_runtimes_there(target("gpu", "box"), seen(onnxruntime="1.32.0"))


def test_an_accelerator_s_runtime_that_is_too_old_is_told_with_the_range() -> None:
    with pytest.raises(UnavailableError, match=r"device box has openvino-npu 2024\.1, >=2025\.2 is needed"):
        require_runtimes_there(target("npu", "box"), seen(**{"openvino": "2024.1", "openvino-npu": "2024.1"}))


@pytest.mark.parametrize(("profile", "device"), [("gpu", None), ("npu", None), ("cpu", "here"), ("arm", "here")])
def test_without_a_device_or_on_a_cpu_nothing_is_asked(profile: str, device: str | None) -> None:
    require_runtimes_there(target(profile, device), {})


def test_a_board_with_one_of_a_cpu_s_runtimes_will_do_and_one_with_none_is_told_before_anything_is_trained() -> None:
    require_runtimes_there(target("cpu", "box"), seen(onnxruntime="1.32.0"))
    for there in (target("cpu", "box"), target("arm", None, "box")):
        with pytest.raises(UnavailableError) as caught:
            require_runtimes_there(there, seen(python="3.11.2", numpy="2.4.6"))
        (problem,) = caught.value.problems
        assert (problem.message, problem.at) == ("the runtime onnxruntime is not installed on device box", "device box")
        assert problem.do == "install it there, in its Python 3.11.2: python -m pip install 'onnxruntime>=1.22'"


def test_a_runtime_that_is_too_old_is_told_before_anything_is_trained() -> None:
    for there in (target("arm", "box"), target("arm", None, "box")):
        with pytest.raises(UnavailableError, match=r"device box has onnxruntime 1\.19\.2, >=1\.22 is needed"):
            require_runtimes_there(there, seen(onnxruntime="1.19.2"))
