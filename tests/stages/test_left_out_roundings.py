import numpy as np
import pytest
import torch
from torch import nn

from kdpipe.foundation.normalize import Normalized
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.stages.left_out_roundings import left_out_roundings
from kdpipe.targets.runtimes.runtime import open_session


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x) + self.c(x))
        return self.linear((self.b(x) + x).mean((2, 3)))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def twin(x):
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    network = Normalized(Body(), (0.3,), (0.35,), 3).eval()
    torch.random.set_rng_state(state)
    prepared = prepare(network, Scheme(), batch_norm="live")
    calibrate_(prepared, [torch.from_numpy(x)])
    return freeze(prepared)


@pytest.fixture
def logits_without(twin, x):
    """`logits_without(names)`: what a runtime gives that keeps the values at these quantizers as they are, within their ranges."""

    def made(names):
        kept = {name: twin.get_submodule(name) for name in names}
        handles = [module.register_forward_hook(_unrounded) for module in kept.values()]
        logits = TorchPredictor(twin)(x)
        for handle in handles:
            handle.remove()
        return logits

    return made


def _unrounded(module, inputs, _output):
    low, high = (float((level - module.zero_point) * module.scale) for level in (0, 255))
    return inputs[0].clamp(low, high)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["quantizers.body_b"], id="one"),
        pytest.param(["quantizers.body_c", "quantizers.body_b_1"], id="one-for-each-addition"),
        pytest.param(["quantizers.body_b", "quantizers.body_c", "quantizers.body_b_1"], id="all"),
    ],
)
def test_the_roundings_that_are_missing_are_found(twin, x, logits_without, names):
    assert left_out_roundings(twin, x, logits_without(names)) == tuple(names)


def test_logits_that_differ_for_another_reason_are_not_explained(twin, x, logits_without):
    assert left_out_roundings(twin, x, logits_without(["quantizers.relu"])) == ()
    assert left_out_roundings(twin, x, logits_without([]) * np.float32(1.5)) == ()


def test_equal_logits_need_no_explanation(twin, x, logits_without):
    assert left_out_roundings(twin, x, logits_without([])) == ()


def test_what_is_no_traced_twin_has_none(x):
    assert left_out_roundings(nn.Flatten(), x, x.reshape(16, 64)) == ()


def test_the_twin_is_left_as_it_was(twin, x, logits_without):
    before = TorchPredictor(twin)(x)
    left_out_roundings(twin, x, logits_without(["quantizers.body_b"]))
    assert np.array_equal(TorchPredictor(twin)(x), before)


def test_openvinos_are_found(twin, x, tmp_path):
    """It merges one of the two convolutions before the first addition; before the second, the sum would overwrite what the convolution reads."""
    (tmp_path / "model.onnx").write_bytes(to_bytes(to_onnx(exportable(twin), (1, 8, 8), opset=19, static_batch=None)))
    with open_session("openvino", tmp_path / "model.onnx") as session:
        assert left_out_roundings(twin, x, session(x)) in {("quantizers.body_b",), ("quantizers.body_c",)}
