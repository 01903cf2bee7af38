import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.stages.throughput import Load, loads, measured, streams_of
from kdpipe.targets.devices.local import LocalDevice


@pytest.fixture
def files(tmp_path):
    """A linear layer, and one of sixteen times the work."""
    made = {}
    for name, width in (("float", 64), ("int8", 1024)):
        weights = {"w1": (64, width), "w2": (width, 10)}
        constants = [numpy_helper.from_array(np.ones(shape, np.float32), key) for key, shape in weights.items()]
        nodes = [helper.make_node("MatMul", ["input", "w1"], ["a"]), helper.make_node("MatMul", ["a", "w2"], ["logits"])]
        given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])
        result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
        graph = helper.make_graph(nodes, "net", [given], [result], constants)
        made[name] = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), made[name])
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).random((64, 64), dtype=np.float32))
    return made


def test_callers_fill_the_cores_unless_their_number_is_named():
    assert streams_of(None, cores=4, threads=1) == 4
    assert streams_of(None, cores=4, threads=3) == 1
    assert streams_of(None, cores=1, threads=2) == 1
    assert streams_of(6, cores=4, threads=1) == 6


def test_each_runtime_is_loaded_once_whatever_its_batches_and_threads():
    found = list(
        loads([("onnxruntime", "onnxruntime 1 CPU"), ("onnxruntime", "onnxruntime 1 CPU"), ("openvino", "openvino 2 CPU")], batch=32, threads=1, streams=2)
    )
    assert [load.runtime for load in found] == ["onnxruntime", "openvino"]
    assert found[0].id == "onnxruntime/batch-32/threads-1/streams-2"
    assert found[0].title == "onnxruntime, batch 32, 2 callers of 1 thread"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_larger_file_gets_less_done_and_the_baseline_stands_beside_itself(runtime, files, tmp_path):
    load = Load("c", runtime, f"{runtime} 1 CPU", batch=8, threads=1, streams=2)
    found = measured(LocalDevice(), load, files, "float", tmp_path / "inputs.npy", seconds=0.3, warmup_seconds=0.2, seed=0)
    int8, floating = (found.figure(name, load, to_float=True) for name in ("int8", "float"))
    assert (int8.model, floating.model, int8.streams, int8.batch) == ("int8", "float", 2, 8)
    assert floating.ratio_to_float is None
    assert int8.ratio_to_float is not None
    assert int8.ratio_to_float.value < 1
    assert int8.ratio_to_float.low <= int8.ratio_to_float.value <= int8.ratio_to_float.high
    assert math.isclose(int8.ratio_to_float.value, int8.samples_per_second.value / floating.samples_per_second.value, rel_tol=1e-6)
    assert found.windows >= 5
    assert found.conditions is not None
    assert (found.conditions.streams, found.conditions.threads, found.conditions.short) == (2, 1, True)
