import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.normalize import Normalized
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.stages import parity as parity_module
from kdpipe.stages.parity import Networks, Parity, allowed_disagreements, climb, compared, require_parity
from kdpipe.targets.profile import InstructionNeeds, load_profile

SAMPLES = 60


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        return self.linear(torch.flatten(self.pool(torch.relu(self.second(x) + x)), 1))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((SAMPLES, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def networks(x):
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    student = Normalized(Body(), (0.3,), (0.35,), 3).eval()
    torch.random.set_rng_state(state)
    twin = prepare(student, Scheme(), batch_norm="live")
    calibrate_(twin, [torch.from_numpy(x)])
    frozen = freeze(twin)
    return Networks(teacher=student, student=student, calibrated=frozen, twin=frozen)


@pytest.fixture(scope="module")
def files(networks):
    """The export's files by name."""
    modules = {"teacher": networks.teacher, "float": networks.student, "model": exportable(networks.twin)}
    made = {name: to_onnx(module, (1, 8, 8), opset=19, static_batch=None) for name, module in modules.items()}
    return {**made, "ptq": made["model"]}


@pytest.fixture
def climbed(files, networks, x, tmp_path):
    """`climbed(change)`: the ladder after `change(model)` was done to model.onnx."""

    def climb_after(change=None, profile="cpu", **changed):
        for name, model in files.items():
            copied = onnx.ModelProto()
            copied.CopyFrom(model)
            if change is not None and name == "model":
                change(copied)
            (tmp_path / f"{name}.onnx").write_bytes(to_bytes(copied))
        labels = TorchPredictor(networks.student)(x).argmax(1)
        return climb(tmp_path, networks, x, labels, load_profile(profile, at="test").model_copy(update=changed))

    return climb_after


def scaled(name, factor):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), name))
                return
        pytest.fail(f"no initializer {name}")

    return change


def test_every_rung_is_climbed_and_held(climbed, tmp_path):
    parity = climbed()
    names = [rung.name.split(" 1.")[0].split(" 2")[0] for rung in parity.rungs]
    assert names[:4] == ["network → twin", "twin → ONNX reference", "twin → onnxruntime", "twin → openvino"]
    assert names[4:] == ["teacher network → onnxruntime", "float network → onnxruntime", "ptq network → onnxruntime"]
    assert [rung.passed for rung in parity.rungs] == [None, True, True, True, True, True, True]
    assert all(rung.n == SAMPLES for rung in parity.rungs if "reference" not in rung.name)
    assert parity.rungs[0].accuracy_before == 1.0
    assert parity.rungs[0].note == "the effect of quantization and fine-tuning: budgets judge it, not parity"
    assert Parity.model_validate_json(parity.model_dump_json()) == parity
    require_parity(parity, tmp_path)


@pytest.mark.parametrize(
    ("initializer", "factor", "node"),
    [
        ("body.second.weight_scale", 1.6, "body.second"),
        ("body.first.0.bias_scale", -9.0, "body.first.0"),
        ("quantizers.body_second.scale", 0.1, "quantizers.body_second"),
        ("normalize.quantizer.scale", 1.7, "normalize"),
        ("body.linear.weight_scale", 0.2, "body.linear"),
    ],
    ids=["weight", "bias", "activation", "input", "last-layer"],
)
def test_a_wrong_scale_breaks_the_ladder_and_its_node_is_named(climbed, tmp_path, initializer, factor, node):
    parity = climbed(scaled(initializer, factor))
    assert [rung.diverges_at for rung in parity.broken] == [node] * 3  # reference and both runtimes
    with pytest.raises(VerificationError) as raised:
        require_parity(parity, tmp_path)
    (problem,) = raised.value.problems
    assert raised.value.exit_code == 5
    assert problem.message.startswith("twin → ONNX reference: ")
    assert problem.message.endswith(f"of their spread; the first node whose output diverges: {node!r}")
    assert problem.at == str(tmp_path / "model.onnx")
    assert problem.do.startswith("the file is not what was trained: build again")


def test_a_rounding_that_the_runtime_leaves_out_is_told_instead_of_a_node(climbed, tmp_path, monkeypatch):
    """Which one is found is tested in test_left_out_roundings.py."""
    monkeypatch.setattr(parity_module, "left_out_roundings", lambda *_: ("quantizers.body_second",))
    reference, *runtimes = climbed(scaled("body.second.weight_scale", 1.6)).broken
    assert reference.diverges_at == "body.second"  # the reference merges nothing
    assert len(runtimes) == 2
    for rung in runtimes:
        assert rung.diverges_at is None
        assert rung.note == "the runtime leaves out the rounding before additions that it merges, of quantizers.body_second"
        with pytest.raises(VerificationError, match="of their spread; the runtime leaves out the rounding before additions that it merges"):
            require_parity(Parity(rungs=(rung,)), tmp_path)


def test_labels_that_differ_at_a_near_tie_are_counted_and_told(tmp_path):
    before = np.array([[0.0, 4.0], [2.0, 1.99], [0.0, 1.0]], np.float32)
    after = np.array([[0.0, 4.0], [1.99, 2.0], [1.0, 0.0]], np.float32)
    rung = compared("a → b", before, after, np.array([1, 0, 1]), tolerance=0.02)
    assert (rung.disagreements, rung.near_ties) == (2, 1)  # the spread is 1.67: 0.01 is within 2 % of it, 1 is not
    with pytest.raises(VerificationError, match=r"2 of 3 labels differ \(allowed: 1, 1 of them near-ties\), logits by"):
        require_parity(Parity(rungs=(rung,)), tmp_path)


def test_weights_with_flipped_bits_are_found(climbed):
    def corrupt(model):
        for tensor in model.graph.initializer:
            if tensor.name == "body.second.weight":
                values = numpy_helper.to_array(tensor).copy()
                values[::2] ^= 0x40
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    assert {rung.diverges_at for rung in climbed(corrupt).broken} == {"body.second"}


def test_a_file_below_the_references_opset_is_raised_for_it(networks, files, climbed):
    def older(model):
        model.CopyFrom(to_onnx(exportable(networks.twin), (1, 8, 8), opset=17, static_batch=None))

    assert climbed(older).broken == ()


def test_a_static_file_is_climbed_in_pieces(networks, climbed):
    def fixed(model):
        model.CopyFrom(to_onnx(exportable(networks.twin), (1, 8, 8), opset=19, static_batch=7))

    parity = climbed(fixed)
    assert parity.broken == ()


def test_on_a_cpu_that_saturates_the_file_is_not_blamed(climbed):
    """No host has a set that is exact here; the file is wrong on purpose, and only the reference may say so."""
    parity = climbed(scaled("body.second.weight_scale", 1.6), instruction_sets=InstructionNeeds(exact_on=("amx-int8" if _has("sve") else "sve",)))
    assert [rung.name for rung in parity.broken] == ["twin → ONNX reference"]
    runtimes = [rung for rung in parity.rungs if rung.name.startswith("twin → o")]
    assert all(rung.passed is None for rung in runtimes)
    assert all("may saturate" in rung.note for rung in runtimes)


def _has(name):
    from kdpipe.targets.instruction_sets import probe

    return name in probe()


@pytest.mark.parametrize("n", [1, 16, 200, 1000, 5000])
def test_as_many_labels_may_differ_as_chance_allows(n):
    allowed = allowed_disagreements(n)

    def more_than(k):
        return 1 - sum(math.comb(n, i) * 0.005**i * 0.995 ** (n - i) for i in range(k + 1))

    assert more_than(allowed) <= 0.001 + 1e-9
    assert allowed == 0 or more_than(allowed - 1) > 0.001


def test_the_numbers_that_chance_allows():
    assert [allowed_disagreements(n) for n in (1, 16, 200, 1000)] == [1, 2, 5, 13]


def test_a_rung_counts_labels_and_logits():
    before = np.array([[0.0, 4.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], np.float32)
    after = np.array([[0.0, 4.0], [2.0, 0.5], [1.5, 1.0], [3.0, 0.0]], np.float32)
    rung = compared("a → b", before, after, np.array([1, 0, 1, 1]), tolerance=0.2)
    assert (rung.n, rung.disagreements, rung.agreement, rung.allowed) == (4, 1, 0.75, 1)
    assert (rung.largest_difference, rung.mean_difference, rung.spread) == (1.5, 0.25, 2.5)
    assert (rung.accuracy_before, rung.accuracy_after) == (0.75, 0.5)
    assert rung.passed is True  # one label may differ by chance, and 0.25 is a tenth of 2.5
    assert compared("a → b", before, after, np.array([1, 0, 1, 1]), tolerance=0.05).passed is False
    assert compared("a → b", before, after, np.array([1, 0, 1, 1]), tolerance=None).passed is None


def test_logits_that_are_not_finite_break_a_rung():
    before = np.array([[0.0, 1.0]], np.float32)
    rung = compared("a → b", before, before * np.float32("nan"), np.array([1]), tolerance=0.1)
    assert (rung.passed, rung.largest_difference, rung.mean_difference) == (False, None, None)
