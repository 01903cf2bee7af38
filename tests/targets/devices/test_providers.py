"""Providers and devices that this machine does not have: onnxruntime and openvino are stood in for, with the interfaces of 1.32 and 2026.4."""

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices import agent
from kdpipe.targets.runtimes.contract import Subject
from kdpipe.targets.runtimes.runtime import open_session


class Options:
    def __init__(self):
        self.entries = {}

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


class Session:
    """`started`: the providers that start; `assigned`: who takes which node."""

    started = ()
    assigned: ClassVar = {}
    last = None

    def __init__(self, model, options, providers):
        self.options, self.providers, self.fallback = options, providers, True
        Session.last = self

    def get_providers(self):
        return [*self.started, "CPUExecutionProvider"]

    def disable_fallback(self):
        self.fallback = False

    def get_inputs(self):
        return [SimpleNamespace(name="input", shape=["n", 1, 8, 8], type="tensor(float)")]

    def get_outputs(self):
        return [SimpleNamespace(name="logits")]

    def get_provider_graph_assignment_info(self):
        parts = [SimpleNamespace(name=name, op_type="Conv") for name in ("a", "b", "softmax")]
        return [SimpleNamespace(ep_name=self.assigned[node.name], get_nodes=lambda node=node: [node]) for node in parts]


@pytest.fixture
def onnxruntime(monkeypatch):
    """An onnxruntime that was built with all providers."""
    made = SimpleNamespace(
        __version__="1.32.0",
        SessionOptions=Options,
        InferenceSession=Session,
        ExecutionMode=SimpleNamespace(ORT_SEQUENTIAL=0),
        GraphOptimizationLevel=SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0),
        get_available_providers=lambda: list(agent.PROVIDERS.values()),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    monkeypatch.setattr(Session, "started", ("XnnpackExecutionProvider",))
    monkeypatch.setattr(Session, "assigned", {"a": "XnnpackExecutionProvider", "b": "XnnpackExecutionProvider", "softmax": "CPUExecutionProvider"})
    return made


def test_xnnpack_has_its_own_threads_and_onnxruntime_s_do_not_spin(onnxruntime):
    loaded = agent.load("onnxruntime-xnnpack", "model.onnx", 4, "latency")
    options = Session.last.options
    assert options.intra_op_num_threads == 1
    assert options.entries["session.intra_op.allow_spinning"] == "0"
    assert Session.last.providers == [("XnnpackExecutionProvider", {"intra_op_num_threads": "4"}), "CPUExecutionProvider"]
    assert not Session.last.fallback
    assert loaded.fell_back == ("softmax",), "what the CPU runs is told"


def test_a_provider_that_takes_no_node_is_not_there(onnxruntime, monkeypatch):
    monkeypatch.setattr(Session, "assigned", dict.fromkeys(("a", "b", "softmax"), "CPUExecutionProvider"))
    with pytest.raises(agent.NotThereError, match="XnnpackExecutionProvider takes none of the 3 nodes of this file: all would run on the CPU"):
        agent.load("onnxruntime-xnnpack", "model.onnx", 4, "latency")


def test_an_onnxruntime_without_that_record_is_watched_running(onnxruntime, monkeypatch):
    """As 1.22 is: the events of its profile name the provider of each node."""

    class Old(Session):
        get_provider_graph_assignment_info = property()  # hasattr says no

        def run(self, outputs, given):
            self.given = given["input"]
            return [given["input"]]

        def end_profiling(self):
            assert self.given.shape == (1, 1, 8, 8)
            path = Path(f"{self.options.profile_file_prefix}.json")
            nodes = [{"cat": "Node", "name": f"{name}_kernel_time", "args": {"provider": by}} for name, by in self.assigned.items()]
            path.write_text(json.dumps([{"cat": "Session", "name": "model_run"}, *nodes]))
            return str(path)

    onnxruntime.InferenceSession = Old
    assert agent.load("onnxruntime-xnnpack", "model.onnx", 4, "latency").fell_back == ("softmax",)
    monkeypatch.setattr(Session, "assigned", {"softmax": "CPUExecutionProvider"})
    with pytest.raises(agent.NotThereError, match="takes none of the 1 nodes"):
        agent.load("onnxruntime-xnnpack", "model.onnx", 4, "latency")
    monkeypatch.setattr(Old, "run", lambda self, outputs, given: 1 / 0)
    assert agent.load("onnxruntime-xnnpack", "model.onnx", 4, "latency").fell_back == (), "nothing is claimed of what was not seen"


@pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-openvino"])
def test_a_provider_that_does_not_start_is_unavailable_and_never_the_cpu(runtime, onnxruntime, tmp_path):
    with pytest.raises(UnavailableError) as caught:
        open_session(runtime, Subject(runtime, tmp_path).file("float"))
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.message == f"{agent.PROVIDERS[runtime]} is in this onnxruntime 1.32.0 but does not start; its libraries or its device are missing"
    assert problem.do


def test_tensorrt_may_leave_nodes_to_cuda_and_openvino_s_provider_fuses_by_itself(onnxruntime, monkeypatch):
    monkeypatch.setattr(Session, "started", tuple(agent.PROVIDERS.values()))
    monkeypatch.setattr(Session, "assigned", {"a": "TensorrtExecutionProvider", "b": "CUDAExecutionProvider", "softmax": "TensorrtExecutionProvider"})
    loaded = agent.load("onnxruntime-tensorrt", "model.onnx", 1, "latency")
    assert [it if isinstance(it, str) else it[0] for it in Session.last.providers] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert loaded.fell_back == ("b",)
    monkeypatch.setattr(Session, "assigned", dict.fromkeys(("a", "b", "softmax"), "OpenVINOExecutionProvider"))
    agent.load("onnxruntime-openvino", "model.onnx", 2, "latency")
    assert Session.last.options.graph_optimization_level == 0
    assert Session.last.providers[0][1]["num_of_threads"] == "2"


def test_a_machine_s_runtimes_are_those_that_start(onnxruntime, monkeypatch):
    monkeypatch.setattr(Session, "started", ("CUDAExecutionProvider",))
    found = agent.runtimes()
    assert {name for name in found if name.startswith("onnxruntime")} == {"onnxruntime", "onnxruntime-xnnpack", "onnxruntime-cuda"}
    assert found["onnxruntime-cuda"] == found["onnxruntime"]


def test_openvino_s_devices_are_runtimes_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=lambda: SimpleNamespace(available_devices=["CPU", "GPU.0", "GPU.1", "NPU"])))
    assert {name for name in agent.runtimes() if name.startswith("openvino")} == {"openvino", "openvino-gpu", "openvino-npu"}


def test_a_runtime_that_cannot_be_imported_has_no_providers_and_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = agent.runtimes()
    assert "onnxruntime-xnnpack" not in found
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_onnxruntime_is_found_under_the_name_of_its_gpu_wheel(monkeypatch):
    def version(distribution: str) -> str:
        if distribution == "onnxruntime-gpu":
            return "1.31.1"
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert agent.installed("onnxruntime") == "1.31.1"
    assert agent.installed("openvino") is None


@pytest.mark.parametrize(
    ("runtime", "settings"), [("openvino-npu", {"PERFORMANCE_HINT", "CACHE_DIR"}), ("openvino-gpu", {"EXECUTION_MODE_HINT", "NUM_STREAMS"})]
)
def test_threads_are_asked_of_openvino_s_cpu_alone(runtime, settings, monkeypatch):
    asked = []

    class Core:
        available_devices = ("CPU", "GPU", "NPU")

        def read_model(self, model):
            return model

        def compile_model(self, model, device, given):
            asked.append((device, given))
            raise RuntimeError("enough")

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    with pytest.raises(RuntimeError, match="enough"):
        agent.load(runtime, "model.onnx", 4, "latency")
    ((device, given),) = asked
    assert device == runtime.removeprefix("openvino-").upper()
    assert settings <= set(given)
    assert "INFERENCE_NUM_THREADS" not in given
