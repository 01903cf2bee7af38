from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdpipe.targets.devices import agent
from kdpipe.targets.lint import asking
from kdpipe.targets.lint.asking import Answer, ask, refusals
from kdpipe.targets.profile import RuntimeNeed, load_profile

ARM, GPU, NPU = (load_profile(name, at="test") for name in ("arm", "gpu", "npu"))


def only(*runtimes: str) -> Any:
    """A profile that is checked in these runtimes."""
    return ARM.model_copy(update={"runtimes": tuple(RuntimeNeed(name=name) for name in runtimes)})


def test_each_runtime_answers_for_itself(files: Path) -> None:
    host, device = ask(files / "s8-one.onnx", GPU)
    assert (host.loads, str(host)) == (True, f"{host.asked} loads the file")
    assert device.loads is None
    assert str(device).startswith("onnxruntime-tensorrt ")
    assert " not asked: this onnxruntime " in str(device)


def test_a_runtime_that_is_not_installed_is_told_with_what_installs_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "installed", lambda module: None)
    (answer,) = ask(files / "u8-one.onnx", only("openvino"))
    assert (answer.asked, answer.loads, answer.said) == ("openvino", None, "not installed: python -m pip install openvino")


def test_a_runtime_of_one_s_own_is_not_asked_here(files: Path) -> None:
    (answer,) = ask(files / "u8-one.onnx", only("my.module:runtime"))
    assert (answer.loads, answer.said) == (None, "a runtime of your own is asked by kdpipe build alone")


def test_nodes_that_an_accelerator_leaves_to_others_are_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for TensorRT, which is not here: it takes all but two nodes."""
    monkeypatch.setattr(agent, "load", lambda runtime, *rest: SimpleNamespace(fell_back=("resize", "topk") if "tensorrt" in runtime else ()))
    host, device = ask(files / "s8-one.onnx", GPU)
    assert host.said == "loads the file"
    assert (device.loads, device.said) == (True, "loads the file, but runs 2 nodes elsewhere: resize, topk")


@pytest.mark.parametrize(("missing", "told"), [((), "takes every node"), (("conv2", "add"), "does not take 2 nodes: conv2, add")], ids=["all", "all but two"])
def test_the_npu_s_plug_in_is_believed_where_its_compiler_answers(files: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], told: str) -> None:
    """Stands for an OpenVINO with the NPU's compiler, which the packages here lack."""
    import openvino

    names = ["conv1", "conv2", "add"]

    class Core:
        available_devices = ("CPU",)

        def read_model(self, path: str) -> Any:
            return SimpleNamespace(get_ordered_ops=lambda: [SimpleNamespace(get_friendly_name=lambda name=name: name) for name in names])

        def query_model(self, model: Any, device: str) -> dict[str, str]:
            assert device == "NPU"
            return {name: "NPU" for name in names if name not in missing}

    monkeypatch.setattr(openvino, "Core", Core)
    assert asking._npu_without_device(files / "u8-one.onnx", "no NPU") == f"no NPU; its plug-in, asked without a device, {told}"


def test_a_runtime_s_words_are_told_without_the_folders_of_this_machine() -> None:
    words = 'Exception from src/inference/src/core.cpp:117:\nException from src/plugin.cpp:54:\nCannot load "/opt/own/libnpu.so": /opt/own/libnpu.so: none\n'
    assert asking._shortened(words) == 'Cannot load "libnpu.so": libnpu.so: none'


def test_those_that_refuse_a_file_become_findings_and_those_that_were_not_asked_do_not() -> None:
    answers = (Answer(asked="a 1", loads=True, said="loads the file"), Answer(asked="b 2", loads=False, said="no"), Answer(asked="c", loads=None, said="away"))
    (finding,) = refusals(answers)
    assert (finding.node, finding.rule, finding.severity, finding.reason) == ("file", "refused", "error", "b 2: no")
    assert str(answers[1]) == "b 2 refuses the file: no"
