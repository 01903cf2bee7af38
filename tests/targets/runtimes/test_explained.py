"""Each cause on a graph that has it, in both runtimes where it applies, and its absence once it is mended."""

import platform
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.targets.causes import Evidence, findings
from kdpipe.targets.devices.agent import copy_rate, usable_cores
from kdpipe.targets.devices.emulated import Emulated
from kdpipe.targets.explanation import why_not_faster
from kdpipe.targets.runtimes.onnxruntime import plugin as onnxruntime
from kdpipe.targets.runtimes.openvino import plugin as openvino
from kdpipe.targets.timing import Times, times

BOTH = pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
ONNX_RUNTIME = pytest.mark.parametrize("runtime", ["onnxruntime"])
CHANNELS = 32


def example(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random((16, *(shape or (3, 16, 16))), dtype=np.float32)


def why(runtime, files, samples=None, **more):
    explanation = why_not_faster(runtime, *files, example() if samples is None else samples, **more)
    return {finding.cause: finding for finding in explanation.findings}, explanation


def residual(net, *, sum_quantized=True):
    trunk = net.block(net.q("input"), CHANNELS, name="conv1")
    branch = net.q(net.conv(trunk, CHANNELS, name="conv2"))
    total = net.op("Relu", net.op("Add", branch, trunk, name="add"), name="add.relu")
    return net.head(net.block(net.q(total) if sum_quantized else total, CHANNELS, name="conv3"))


def open_sum(net):
    return residual(net, sum_quantized=False)


@BOTH
def test_a_sum_whose_result_is_not_quantized(runtime, pair):
    found, explanation = why(runtime, pair(open_sum))
    finding = found["residual-add"]
    assert "add" in finding.text
    assert {"conv3", "conv3/WithoutBiases"} & set(finding.nodes), "the layer behind the sum runs in float"
    assert finding.share > 0.1
    assert explanation.int8_share < 1
    mended, _ = why(runtime, pair(residual))
    assert "residual-add" not in mended


def signed_relu(net):
    value = net.q("input")
    for k in (1, 2, 3):
        value = net.block(value, CHANNELS, name=f"conv{k}")
    return net.head(value)


@ONNX_RUNTIME  # OpenVINO fuses it
def test_a_relu_that_its_quantizer_does_not_do(runtime, pair):
    found, explanation = why(runtime, pair(signed_relu, signed=True))
    finding = found["split-activation"]
    assert {"conv1", "conv2", "conv3"} <= set(finding.nodes)
    assert finding.share > 0.5
    assert explanation.int8_share == 0
    mended, explanation = why(runtime, pair(signed_relu))
    assert "split-activation" not in mended
    assert explanation.int8_share == 0.75  # the logits stay float


@ONNX_RUNTIME
def test_a_sum_before_such_a_relu_is_told_as_the_relu_s_doing(runtime, pair):
    found, _ = why(runtime, pair(residual, signed=True))
    assert "residual-add" not in found
    assert "add" in found["split-activation"].nodes


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime's ARM build takes int8 activations")
@ONNX_RUNTIME  # OpenVINO takes them
def test_signed_activations_that_several_layers_take(runtime, pair):
    found, explanation = why(runtime, pair(residual, signed=True, zero=-128))
    finding = found["signed-activation"]
    assert {"conv1", "conv2", "add"} <= set(finding.nodes), "what makes and what takes the tensor with two takers"
    assert "(at conv1.relu.out.quantize)" in finding.text
    assert finding.share > 0.3
    assert explanation.int8_share < 0.75
    mended, explanation = why(runtime, pair(residual))
    assert "signed-activation" not in mended
    assert explanation.int8_share == 0.75


def depthwise(net, *, per_channel=False):
    value = net.q(net.op("Relu", net.conv(net.q("input"), CHANNELS, name="conv1", bias=True), name="relu1"), per_channel=per_channel)
    value = net.block(value, CHANNELS, groups=CHANNELS, name="depthwise", bias=True)
    return net.head(net.block(value, CHANNELS, kernel=1, name="pointwise", bias=True))


def depthwise_per_channel(net):
    return depthwise(net, per_channel=True)


@ONNX_RUNTIME  # OpenVINO takes it
def test_per_channel_activations_before_a_depthwise_layer(runtime, pair):
    found, _ = why(runtime, pair(depthwise_per_channel))
    finding = found["per-channel-activation"]
    assert {"conv1", "depthwise"} <= set(finding.nodes)
    assert finding.share > 0.3
    mended, _ = why(runtime, pair(depthwise))
    assert "per-channel-activation" not in mended


def sine_between(net, *, operator="Sin"):
    value = net.q("input")
    for k in (1, 2, 3):
        value = net.q(net.op(operator, net.q(net.conv(value, CHANNELS, name=f"conv{k}")), name=f"between{k}"))
    return net.head(value)


@BOTH
def test_an_operator_without_an_integer_kernel_between_quantizers(runtime, pair):
    found, _ = why(runtime, pair(sine_between))
    finding = found["float-operator"]
    assert "between1" in finding.text
    assert finding.share > 0.05
    assert "float-operator" not in why(runtime, pair(signed_relu))[0]


def weights_alone(net):
    value = "input"
    for k in (1, 2, 3):
        value = net.op("Relu", net.conv(value, CHANNELS, name=f"conv{k}"), name=f"relu{k}")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", value, name="pool"), name="flatten")
    return net.op("Gemm", pooled, net.weight("linear.weight", (10, CHANNELS)), name="linear", transB=1)


@BOTH
def test_weights_that_are_quantized_alone(runtime, pair):
    found, _ = why(runtime, pair(weights_alone))
    assert "conv1" in found["weights-only"].text
    assert found["weights-only"].share > 0.5


def shuffled(net, *, shuffle=True):
    """Channel shuffle as in ShuffleNet."""
    value = net.block(net.q("input"), CHANNELS, name="conv1")
    for k in (2, 3, 4):
        if shuffle:
            apart = net.constant(f"apart{k}", np.array([0, 2, CHANNELS // 2, *net.shape[1:]], np.int64))
            back = net.constant(f"back{k}", np.array([0, CHANNELS, *net.shape[1:]], np.int64))
            turned = net.op("Transpose", net.op("Reshape", value, apart, name=f"apart{k}"), name=f"turn{k}", perm=[0, 2, 1, 3, 4])
            value = net.q(net.op("Reshape", turned, back, name=f"back{k}", channels=CHANNELS))
        value = net.block(value, CHANNELS, name=f"conv{k}", kernel=1)
    return net.head(value)


def plain(net):
    return shuffled(net, shuffle=False)


def turned(net, *, turn=True):
    """A channels-last part within a channels-first network, as frameworks of both kinds joined leave it."""
    value = net.block(net.q("input"), CHANNELS, name="conv1")
    for k in (2, 3):
        if turn:
            last = net.op("Transpose", value, name=f"last{k}", perm=[0, 2, 3, 1])
            value = net.op("Transpose", net.q(net.op("Sigmoid", last, name=f"gate{k}"), scale=1 / 256), name=f"first{k}", perm=[0, 3, 1, 2])
        value = net.block(value, CHANNELS, name=f"conv{k}")
    return net.head(value)


def unturned(net):
    return turned(net, turn=False)


@pytest.mark.parametrize(
    ("runtime", "bad", "good"),
    [("onnxruntime", shuffled, plain), pytest.param("openvino", turned, unturned, marks=pytest.mark.slow)],
    ids=["onnxruntime", "openvino"],
)
def test_layout_changes(runtime, bad, good, pair):
    """OpenVINO has a kernel for the shuffle, ONNX Runtime turns whole parts."""
    found, explanation = why(runtime, pair(bad))
    finding = found["layout"]
    assert len(finding.nodes) > 4
    assert {node.operator for node in explanation.nodes if node.name in finding.nodes} <= {"Transpose", "Reorder", "ReorderInput", "ReorderOutput"}
    mended, _ = why(runtime, pair(good))
    assert "layout" not in mended or mended["layout"].share < finding.share


def shape_computing(net):
    """Each block asks for its own size and reshapes to it, as exporters write `x.view(x.shape)`."""
    value = net.block(net.q("input"), CHANNELS, name="conv1")
    for k in (2, 3, 4):
        value = net.op("Reshape", value, net.op("Shape", value, name=f"size{k}"), name=f"view{k}", channels=CHANNELS)
        value = net.block(value, CHANNELS, name=f"conv{k}", kernel=1)
    return net.head(value)


@pytest.mark.slow
@ONNX_RUNTIME
def test_shapes_that_are_computed_at_each_inference(runtime, pair):
    found, explanation = why(runtime, pair(shape_computing))
    finding = found["dynamic-shape"]
    assert "nodes only compute shapes" in finding.text
    assert finding.nodes
    assert all(node.operator == "Shape" for node in explanation.nodes if node.name in finding.nodes)
    static, _ = why(runtime, pair(shape_computing, batch=1))
    assert "dynamic-shape" not in static


def tiny_trunk(net):
    value = net.q("input")
    for k in range(12):
        value = net.block(value, 8, name=f"conv{k}")
    return value


def tiny(net):
    return net.head(tiny_trunk(net))


@BOTH
def test_tiny_layers(runtime, pair):
    found, _ = why(runtime, pair(tiny, shape=(3, 4, 4)), example(3, 4, 4))
    assert found["small-layers"].share > 0.3
    assert "of its" in found["small-layers"].text
    assert len(found["small-layers"].nodes) > 6


def copying(net):
    """The input's planes stacked over and over: bytes alone."""
    value = net.q("input")
    for k in range(3):
        value = net.op("Concat", value, value, name=f"stack{k}", axis=1, channels=2 * net.channels[value])
    return net.head(net.conv(net.q(net.op("MaxPool", value, name="shrink", kernel_shape=[8, 8], strides=[8, 8])), 8, name="conv1", kernel=1))


@pytest.mark.slow
@ONNX_RUNTIME  # OpenVINO joins by writing in place
def test_nodes_that_wait_for_memory(runtime, pair):
    found, explanation = why(runtime, pair(copying, shape=(8, 128, 128)), example(8, 128, 128))
    traffic = {node.name: node.bytes_written for node in explanation.nodes if node.operator.endswith("Concat")}
    assert max(traffic.values()) >= 64 * 128 * 128
    assert found["memory-bound"].share > 0.05


@pytest.mark.slow
@BOTH
def test_more_threads_than_cores(runtime, pair):
    files, cores = pair(plain), usable_cores()
    found, explanation = why(runtime, files, threads=2 * cores + 1)
    if "threads" in found:  # a share below one per cent is not told; on a busy machine too many threads may cost nothing more
        assert f"{2 * cores + 1} threads" in found["threads"].text
    assert explanation.threads == 2 * cores + 1


@BOTH
def test_both_files_are_measured_against_each_other(runtime, pair):
    _, explanation = why(runtime, pair(plain))
    assert explanation.ratio_to_float > 0
    assert explanation.milliseconds > 0
    assert sum(node.share for node in explanation.nodes) == pytest.approx(1)


@BOTH
def test_traffic_is_by_shapes_and_types(runtime, pair):
    """conv2: 32 maps of 16 × 16 in u8 come in, and go out; 32 × 32 weights of one byte beside it."""
    _, explanation = why(runtime, pair(plain))
    conv = next(node for node in explanation.nodes if node.name.split("/")[0] == "conv2")
    assert conv.precision == "int8"
    maps = CHANNELS * 16 * 16
    assert conv.bytes_written == maps
    assert maps + CHANNELS * CHANNELS <= conv.bytes_read <= maps + CHANNELS * CHANNELS + 1024  # scales beside


@pytest.mark.slow
def test_a_static_file_is_told_to_be_tiny_too_and_one_with_its_batch_written_inside_is_not_judged(pair):
    found, _ = why("onnxruntime", pair(tiny, shape=(3, 4, 4), batch=1), example(3, 4, 4))
    assert found["small-layers"].share > 0.3

    def written_inside(net):
        flat = net.op("Reshape", net.q("input"), net.constant("shape", np.array([48], np.int64)), name="flat", channels=48)
        row = net.op("Unsqueeze", flat, net.constant("axis", np.array([0], np.int64)), name="row")
        return net.op("Gemm", row, net.weight("linear.weight", (10, 48)), name="linear", transB=1)

    def flattened(net):
        value = tiny_trunk(net)
        flat = net.op("Reshape", value, net.constant("shape", np.array([1, 8 * 16], np.int64)), name="flat", channels=128)
        return net.op("Gemm", flat, net.weight("linear.weight", (10, 128)), name="linear", transB=1)

    found, _ = why("onnxruntime", pair(written_inside, shape=(3, 4, 4), batch=1), example(3, 4, 4))
    assert "small-layers" not in found
    found, _ = why("onnxruntime", pair(flattened, shape=(3, 4, 4), batch=1), example(3, 4, 4))
    assert "small-layers" in found, "a Reshape to (1, n) is what exporters write"


class Recorded:
    """An opening that says what was asked of it; its first inference takes 50 ms."""

    name = "recorded"

    def __init__(self, *, on_cpu=True):
        self.loads, self.on_cpu = [], on_cpu

    def load(self, model, *, threads, shape=None):
        self.loads.append((str(model), threads, shape))
        waits = iter([0.05])
        return SimpleNamespace(run=lambda batch: time.sleep(next(waits, 0.0)), batch=None, shape=(None,))

    def observe(self, model, *, threads, example):
        raise AssertionError("not asked for")


def test_times_are_taken_of_the_first_run_of_fixed_sides_of_fewer_threads_and_of_the_float_file(monkeypatch):
    monkeypatch.setattr("kdpipe.targets.timing.STEADY", 1e9)  # what sleeping takes differs from half to half
    monkeypatch.setattr("kdpipe.targets.timing._BUSY", 1.0)
    cores, opening = usable_cores(), Recorded()
    found = times(opening, Path("int8"), example(4), threads=2 * cores, against=Path("float"))
    many = 2 * cores
    assert opening.loads == [
        ("int8", many, None),
        ("int8", many, None),  # once more, against itself
        ("int8", many, (1, 4)),
        ("int8", 1, None),
        ("int8", cores, None),
        ("float", many, None),
        ("float", 1, None),
    ]
    assert found.first is None or found.first > 40
    assert None not in (found.within_batch, found.fixed, found.one_thread, found.all_cores, found.float_alone, found.float_one_thread)
    accelerated = Recorded(on_cpu=False)
    times(accelerated, Path("int8"), example(4), threads=many, against=Path("float"))
    assert accelerated.loads == [("int8", many, None), ("int8", many, (1, 4)), ("float", many, None)]
    alone = times(Recorded(), Path("int8"), example(4), threads=1)
    assert (alone.one_thread, alone.all_cores, alone.float_alone) == (None, None, None)


def test_a_copy_s_rate_is_that_of_memory():
    assert 1e8 < copy_rate(1 << 20) < 1e13


@BOTH
def test_a_file_against_itself_is_refused(runtime, pair):
    file, _ = pair(plain)
    with pytest.raises(ConfigError) as caught:
        why_not_faster(runtime, file, file, example())
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == ("both files are the same", str(file), "name the int8 file and the float file of one network")


def depthwise_with_vector_zeros(net):
    value = net.q(net.op("Relu", net.conv(net.q("input"), CHANNELS, name="conv1"), name="relu1"), per_channel=True)
    return net.head(net.block(value, CHANNELS, groups=CHANNELS, name="depthwise"))


def test_a_file_that_loads_and_does_not_run_fails_verification_with_the_runtime_s_words(pair):
    """ONNX Runtime 1.32 fuses this one and finds out when it runs."""
    with pytest.raises(VerificationError) as caught:
        why("onnxruntime", pair(depthwise_with_vector_zeros))
    (problem,) = caught.value.problems
    assert "loads the file but cannot run it" in problem.message
    assert "must be a scalar" in problem.message
    assert problem.at.endswith("depthwise_with_vector_zeros-int8.onnx")
    assert problem.do


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs an emulator: apt-get install qemu-user-static")
@pytest.mark.parametrize("plugin", [onnxruntime, openvino], ids=["onnxruntime", "openvino"])
def test_a_cpu_without_the_dot_product(plugin, pair):
    """What an emulated Haswell says of itself, beside the layers that really multiply in int8."""
    haswell = Emulated(kind="emulated", cpu="Haswell").device("haswell", Path()).facts()
    seen = plugin.opening("latency").observe(pair(plain)[0], threads=1, example=example())
    (finding,) = [it for it in findings(Evidence(seen, Times(alone=1.0), frozenset(haswell.instruction_sets))) if it.cause == "missing-instruction"]
    assert {"conv1", "conv2", "conv3"} <= {name.split("/")[0] for name in finding.nodes}
    assert finding.share > 0.2
    with_it = findings(Evidence(seen, Times(alone=1.0), frozenset({"x86-64", "avx2", "vnni"})))
    assert not any(it.cause == "missing-instruction" for it in with_it)
