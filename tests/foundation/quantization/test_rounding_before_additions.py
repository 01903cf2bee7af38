"""OpenVINO leaves the first rounding behind a layer out where it merges the layer with an addition; a file can make it round."""

import collections
import copy
import functools

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

from kdpipe.foundation.normalize import Normalized
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.qdq import before_additions, exportable
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.quantization.zero_points import with_own_zero_points


class Body(nn.Module):
    def __init__(self, forward_of):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.d, self.e = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 4)
        self.forward_of = forward_of

    def forward(self, x):
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(self.forward_of(self, F.relu(self.a(x))), 1), 1))


@pytest.fixture(scope="module")
def frozen(samples):
    """`frozen(forward_of)`: the frozen twin of a small network around `forward_of(network, x)`, x (n, 8, 8, 8)."""

    @functools.cache
    def make(forward_of):
        state = torch.random.get_rng_state()
        torch.manual_seed(3)
        twin = prepare(Normalized(Body(forward_of), (0.3,), (0.35,), 3).eval(), Scheme(), batch_norm="live")
        torch.random.set_rng_state(state)
        calibrate_(twin, [samples(64)])
        return freeze(twin)

    return make


@pytest.fixture(scope="module")
def exported(frozen):
    """`exported(kind, keep_rounding)`: the file of the kind of shortcut; made once."""
    return functools.cache(lambda kind, keep_rounding: file_of(frozen(SHORTCUTS[kind]), keep_rounding=keep_rounding))


def file_of(twin, **options):
    return to_onnx(exportable(twin, **options), (1, 8, 8), opset=19, static_batch=None)


def in_openvino(model, x):
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(to_bytes(model)), "CPU", {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1})
    return compiled(x)[0]


def off(found, expected):
    """The mean difference as a share of the spread."""
    return np.abs(found - expected).mean() / np.ptp(expected, axis=1).mean()


SHORTCUTS = {
    "identity": lambda m, x: F.relu(m.b(F.relu(m.d(x))) + x),
    "convolution": lambda m, x: F.relu(m.b(F.relu(m.d(x))) + m.c(x)),
    "linear-bottleneck": lambda m, x: m.b(F.relu(m.d(x))) + x,
}
QUANTIZERS = {"identity": ["b"], "convolution": ["b", "c"], "linear-bottleneck": ["b"]}


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_openvino_rounds_before_the_addition_only_where_the_file_says_it_twice(frozen, exported, samples, kind):
    """Should the last line fail with a new OpenVINO, it rounds by itself, and the second pair can go."""
    twin, x = frozen(SHORTCUTS[kind]), samples(64, 5)
    expected = twin(x).numpy()
    assert [name.removeprefix("quantizers.body_") for name in before_additions(twin)] == QUANTIZERS[kind]
    once, twice = (off(in_openvino(exported(kind, keeps), x.numpy()), expected) for keeps in (False, True))
    assert once > 0.0001  # a rounding that is left out moves all values that it would have rounded
    assert twice <= 0.1 * once  # the few integers at the edge that a float sum in another order moves


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_the_file_computes_the_same_and_onnx_runtime_runs_the_same_graph(exported, samples, kind, tmp_path):
    x, graphs, outputs = samples(8, 5).numpy(), [], []
    for keeps in (False, True):
        model = exported(kind, keeps)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3  # it warns that an optimised model is bound to this machine
        session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
        outputs.append((ReferenceEvaluator(model).run(None, {"input": x})[0], session.run(None, {"input": x})[0]))
        graphs.append(collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node))
    assert np.array_equal(*(reference for reference, _ in outputs))
    assert np.array_equal(*(runtime for _, runtime in outputs))
    assert graphs[0] == graphs[1]
    assert (graphs[1]["QLinearAdd"], graphs[1]["Conv"]) == (1, 0)


@pytest.mark.parametrize(
    ("forward_of", "summands"),
    [
        pytest.param(lambda m, x: F.relu(m.b(x)) + 1, [], id="a-number"),
        pytest.param(lambda m, x: F.relu(m.b(x) * m.c(x)), [], id="a-product"),
        pytest.param(lambda m, x: (lambda y: m.c(y) * (y + x))(m.b(x)), [], id="used-twice"),
        pytest.param(lambda m, x: F.relu(m.b(x)) + x, ["relu_1"], id="activation-that-is-merged"),
        pytest.param(lambda m, x: torch.add(F.silu(m.b(x)), x), [], id="activation-that-is-not"),
    ],
)
def test_only_what_a_layer_gives_to_an_addition_of_two_tensors_counts(frozen, forward_of, summands):
    assert [name.removeprefix("quantizers.") for name in before_additions(frozen(forward_of))] == summands


def bottlenecks_with_one_zero_point(m, x):
    x = m.b(F.relu(m.d(x))) + x
    return m.c(F.relu(m.e(x))) + x


@pytest.fixture(scope="module")
def sharing(frozen):
    """A twin whose quantizers before its two additions have the same zero point, and its file."""
    twin = copy.deepcopy(frozen(bottlenecks_with_one_zero_point))
    for name in before_additions(twin):
        twin.get_submodule(name).zero_point.fill_(128)
    return twin, file_of(twin, keep_rounding=True)


def test_openvino_rounds_before_each_addition_only_where_zero_points_are_not_shared(sharing, samples):
    """Should the first bound fail with a new OpenVINO, it keeps such pairs by itself, and `with_own_zero_points` can go."""
    (twin, model), x = sharing, samples(64, 5)
    expected = twin(x).numpy()
    shared, own = (off(in_openvino(each, x.numpy()), expected) for each in (model, with_own_zero_points(model)))
    assert shared > 0.0001
    assert own <= 0.1 * shared


def test_own_zero_points_are_the_same_numbers_and_no_constant_is_left_unused(sharing, samples):
    _, model = sharing
    found, x = with_own_zero_points(model), samples(8, 5).numpy()
    onnx.checker.check_model(found, full_check=True)
    assert np.array_equal(*(ReferenceEvaluator(each).run(None, {"input": x})[0] for each in (model, found)))
    pairs = collections.Counter(node.input[2] for node in found.graph.node if node.op_type == "QuantizeLinear")
    assert sorted(name for name, times in pairs.items() if times == 2) == ["quantizers.body_b/q.zero_point", "quantizers.body_c/q.zero_point"]
    assert {tensor.name for tensor in found.graph.initializer} <= {value for node in found.graph.node for value in node.input}
    assert len(found.graph.node) == len(model.graph.node)


def test_a_file_without_such_an_addition_stays_as_it_is_bit_for_bit(frozen):
    twin = frozen(lambda m, x: m.c(x))
    once = file_of(twin)
    assert to_bytes(with_own_zero_points(file_of(twin, keep_rounding=True))) == to_bytes(once)
