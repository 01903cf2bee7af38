import json
from types import SimpleNamespace

import pytest

from kdpipe.targets.causes import Evidence
from kdpipe.targets.devices.agent import Loaded
from kdpipe.targets.explanation import concluded
from kdpipe.targets.runtimes.onnxruntime_view import accelerated_view
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.targets.timing import Times


@pytest.fixture
def explained(files, samples):
    def explain(name: str):
        with open_session("onnxruntime", files / name) as session:
            return session.explain(samples)

    return explain


def test_a_fused_file_shows_integer_operators_and_what_the_float_file_fused(explained):
    operators = {node.name: (node.operator, node.precision) for node in explained("u8.onnx").nodes}
    assert {operators[name] for name in ("conv1", "conv2", "conv3")} == {("QLinearConv", "int8")}
    assert operators["linear"] == ("QGemm", "int8")
    assert ("Relu",) in {node.fused for node in explained("float.onnx").nodes if node.operator == "Conv"}


def test_quantizers_between_layer_and_activation_are_named_as_what_was_not_fused(explained):
    explanation = explained("s8.onnx")
    quantizers = {node.name for node in explanation.nodes if node.operator in ("QuantizeLinear", "DequantizeLinear")}
    assert any(quantizers.intersection(finding.nodes) and "nodes that a fused layer does not have" in finding.text for finding in explanation.findings)
    assert any(node.operator == "Relu" and node.precision == "float32" for node in explanation.nodes)


def test_a_layer_between_leftover_quantizers_counts_as_float_and_is_named(explained):
    explanation = explained("s8.onnx")
    float_layers = [node for node in explanation.nodes if node.operator == "Conv"]
    assert float_layers, "this ONNX Runtime fuses everything here: the test needs another file"
    assert explanation.int8_share == 1 - len(float_layers) / 4
    assert all("run in float" in node.note for node in float_layers)
    assert any(float_layers[0].name in finding.text and "run in float" in finding.text for finding in explanation.findings)


def test_inserted_transposes_are_counted(explained):
    assert any("only change the memory layout" in finding.text for finding in explained("s8.onnx").findings)


def test_the_quantizers_at_both_ends_are_no_reproach(explained):
    assert not any("not fused" in finding.text for finding in explained("u8-one.onnx").findings)


def test_threads_are_set_and_deterministic_computing_is_on(files):
    with open_session("onnxruntime", files / "u8.onnx", threads=2) as session:
        options = session._loaded.handle.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads, options.use_deterministic_compute) == (2, 1, True)
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_an_accelerator_s_parts_are_one_node_each_and_what_it_left_to_the_cpu_is_told(tmp_path, monkeypatch, samples):
    """The events of TensorRT's and the CPU's nodes as the profile of 1.32 writes them; the session is stood in for."""
    events = [
        ("TRTKernel_graph_1", "TRTKernel_graph_1", "TensorrtExecutionProvider", 90, 256, 640, "float"),
        ("softmax", "Softmax", "CPUExecutionProvider", 10, 640, 640, "float"),
    ]

    def end_profiling():
        runs = [
            {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {
                "op_name": operator, "provider": by, "activation_size": str(read), "output_size": str(written), "output_type_shape": [{kind: [1, 10]}],
            }}
            for _ in range(len(calls))
            for name, operator, by, dur, read, written, kind in events
        ]  # fmt: skip
        path = tmp_path / "profile.json"
        path.write_text(json.dumps([{"cat": "Session", "name": "model_run", "dur": 120}, *runs]))
        return str(path)

    calls = []
    loaded = Loaded(calls.append, SimpleNamespace(end_profiling=end_profiling), "input", "tensor(float)", 1, (1, 8, 8), 1)
    monkeypatch.setattr("kdpipe.targets.devices.agent.load_onnxruntime", lambda *given, **more: loaded)
    seen = accelerated_view(tmp_path / "model.onnx", 1, "latency", "TensorrtExecutionProvider", samples)
    part, left = seen.nodes
    assert (part.precision, part.share, part.note) == ("not told", 0.9, "run by Tensorrt")
    assert (left.name, left.precision, left.bytes_written) == ("softmax", "float32", 640)
    assert seen.fell_back == ("softmax",)
    explanation = concluded("onnxruntime 1.32.0 TensorRT", Evidence(seen, Times(alone=0.1), frozenset()))
    assert explanation.int8_share is None
    assert [(it.cause, it.share) for it in explanation.findings] == [("fell-back", 0.1)]
