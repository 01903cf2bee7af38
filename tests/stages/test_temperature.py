import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.layers import FrozenLayer
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.randomness import stream
from kdpipe.stages import export, qat
from kdpipe.stages.export import ExportConfig, temperature_of
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.parity import Parity
from kdpipe.stages.qat import QatConfig
from kdpipe.stages.temperature import fitted, scaled
from kdpipe.targets.lint import lint
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import open_session


def drawn(n=3000, classes=5, seed=0):
    """Logits whose softmax the labels were drawn from."""
    generator = np.random.default_rng(seed)
    logits = (2 * generator.standard_normal((n, classes))).astype(np.float32)
    probabilities = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    return logits, (probabilities.cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1)


def nll(logits, labels, temperature):
    return -log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0], ids=str)
def test_the_temperature_undoes_a_factor_on_the_logits(factor):
    logits, labels = drawn()
    assert fitted(np.float32(factor) * logits, labels).value == pytest.approx(factor, rel=0.1)  # 3,000 samples


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 5))
def test_it_is_the_minimum_that_scipy_finds(seed, factor):
    logits, labels = drawn(n=200, seed=seed)
    logits = (factor * logits).astype(np.float32)
    found = fitted(logits, labels)
    expected = minimize_scalar(lambda log_t: nll(logits, labels, np.exp(log_t)), bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-9})
    assert found.value == pytest.approx(float(np.exp(expected.x)), rel=1e-4)
    assert found.nll_after == pytest.approx(nll(logits, labels, found.value), rel=1e-12)
    assert found.nll_after <= found.nll_before == pytest.approx(nll(logits, labels, 1), rel=1e-12)
    assert (found.n, found.note, found.fitted_on) == (200, None, "validation")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (lambda logits: logits.argmax(axis=1), "the likelihood grows with ever larger logits: nearly every label is right"),
        (lambda logits: logits.argmin(axis=1), "the likelihood grows with ever smaller logits: the labels are hardly better than guessed"),
    ],
    ids=["all right", "all wrong"],
)
def test_where_no_temperature_is_best_the_logits_stay_and_it_is_said(labels, why):
    logits, _ = drawn(n=100)
    found = fitted(logits, labels(logits))
    assert found.value == 1
    assert found.nll_after == found.nll_before
    assert found.told == f"not scaled: {why}, no temperature in [0.05, 20] is best"


class EndsOtherwise(nn.Module):
    """The mean of two heads: no layer makes the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return (self.first(x) + self.second(x)) / 2


def twin_of(module, profile, x):
    prepared = prepare(module.eval(), profile.chosen_scheme, batch_norm="live")
    calibrate_(prepared, [x], "minmax", percentile=99.9)
    return freeze(prepared)


@pytest.fixture(scope="module", params=["npu", "gpu"])
def profile(request):
    return load_profile(request.param, at="test")


def test_the_integers_stay_and_the_logits_are_divided(tiny, digits, profile):
    x = torch.from_numpy(digits.validation.read(np.arange(50)))
    twin = twin_of(tiny().module, profile, x)
    before, half = TorchPredictor(twin)(x.numpy()), scaled(twin, 1.7)
    after = TorchPredictor(half)(x.numpy())
    assert after == pytest.approx(before / 1.7, rel=1e-5, abs=1e-6)
    assert TorchPredictor(twin)(x.numpy()).tolist() == before.tolist()  # the twin itself is as it was
    layers = [name for name, module in twin.named_modules() if isinstance(module, FrozenLayer)]
    changed = [name for name in layers if not torch.equal(half.get_submodule(name).weight, twin.get_submodule(name).weight)]
    assert len(changed) == 1  # the last layer alone
    integers = [getattr(exportable(each).get_submodule(changed[0]), "weight") for each in (twin, half)]  # noqa: B009  # a buffer, not an attribute of Module
    assert torch.equal(*integers)


def test_a_network_that_ends_otherwise_gets_a_multiplication(digits, profile):
    x = torch.from_numpy(digits.validation.read(np.arange(50)))
    torch_state = stream(0, "test/ends")
    module = EndsOtherwise()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_state))
    twin = twin_of(module, profile, x)
    assert TorchPredictor(scaled(twin, 3.0))(x.numpy()) == pytest.approx(TorchPredictor(twin)(x.numpy()) / 3, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="session")
def too_sure(taught, tmp_path_factory):
    """A small network that was trained briefly and whose last layer was then made eight times as large."""
    network = load_network(taught("cnn-small", {}, begins="cnn", epochs=4))
    last = [module for module in network.module.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(8)
        last.bias.mul_(8)
    return save_network(network, tmp_path_factory.mktemp("too-sure") / "prune")


@pytest.fixture
def overconfident(too_sure, inputs, context_in, tmp_path):
    """`overconfident("cpu")`: prune and qat artifacts of that network."""

    def make(target):
        (tmp_path / "qat").mkdir()
        given = replace(inputs, artifacts={"prune": too_sure, "teacher": too_sure}, profile=load_profile(target, at="test"))
        qat.run(given, QatConfig(epochs=0, objective=parse_objective("plain", {}, at="test")), context_in(tmp_path / "qat"))
        return {"prune": too_sure, "teacher": too_sure, "qat": tmp_path / "qat"}

    return make


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "arm", "gpu", "npu"])
def test_the_file_holds_it_and_keeps_every_rule_and_rung(overconfident, inputs, context, listener, digits, target):
    profile = load_profile(target, at="test")
    mine = replace(inputs, artifacts=overconfident(target), profile=profile)
    folder = export.run(mine, ExportConfig(temperature_scaling=True), context)
    temperature = temperature_of(folder)
    assert temperature is not None
    assert temperature > 1.3  # the last layer was made too large
    parity = Parity.model_validate_json((folder / "parity.json").read_text())
    rung = next(it for it in parity.rungs if it.name.startswith("twin → twin at temperature"))
    assert (rung.disagreements, rung.passed) == (0, True)
    assert not parity.broken
    assert lint(folder / "model.onnx", profile) == ()
    assert any(line.startswith("temperature ") and "NLL on validation from" in line for line in listener.said)

    plain_folder = context.folder / "plain"
    plain_folder.mkdir()
    plain = export.run(mine, ExportConfig(parity_samples=2), replace(context, folder=plain_folder))  # its own parity is not the question
    assert temperature_of(plain) is None
    assert len(onnx.load(plain / "model.onnx").graph.node) == len(onnx.load(folder / "model.onnx").graph.node)  # folded: it costs nothing
    x = digits.validation.read(np.arange(100))
    runtime = profile.runtimes[0].name if profile.runtimes[0].name in ("onnxruntime", "openvino") else "onnxruntime"
    with open_session(runtime, folder / "model.onnx") as session, open_session(runtime, plain / "model.onnx") as before:
        after, unscaled = session(x), before(x)
    assert np.abs(after - unscaled / temperature).mean() <= 1e-3 * np.ptp(after, axis=1).mean()
    assert (after.argmax(1) == unscaled.argmax(1)).all()


def test_without_the_key_the_export_is_what_it_was():
    assert ExportConfig().model_dump(exclude_none=True) == {"parity_samples": 1000}
    assert copy.deepcopy(ExportConfig()) == ExportConfig()
