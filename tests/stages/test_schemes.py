import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.layers import FrozenFloatLayer, FrozenLayer
from kdpipe.stages import export, qat
from kdpipe.stages.export import ExportConfig
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.parity import Parity
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import open_session

PLAIN = parse_objective("plain", {}, at="test")


@pytest.fixture
def chain(inputs, tiny, context):
    """`chain("cpu", "float16")`: qat and export of an untrained network; the folders of both. `exported=False`: qat alone."""
    network = tiny(width=0.5)
    network.module.eval()
    start = save_network(network, _made(context.folder / "network"))

    def run(target, kind, *, epochs=0, float_layers=None, exported=True):
        given = replace(inputs, artifacts={"prune": start, "teacher": start}, profile=load_profile(target, at="test", scheme=kind))
        config = QatConfig(epochs=epochs, batch_size=32, objective=PLAIN, keep_float=float_layers)
        made = qat.run(given, config, replace(context, folder=_made(context.folder / "qat")))
        if not exported:
            return made, None
        given = replace(given, artifacts={**given.artifacts, "qat": made})
        return made, export.run(given, ExportConfig(parity_samples=20), replace(context, folder=_made(context.folder / "export")))

    return run


def _made(folder):
    folder.mkdir()
    return folder


def stored(folder, name="model.onnx"):
    """Elements by the type in which they stand in the file."""
    found = {}
    for tensor in onnx.load(folder / name).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        found[kind] = found.get(kind, 0) + int(np.prod(tensor.dims))
    return found


@pytest.mark.parametrize(("kind", "wanted"), [pytest.param("weights-only", "INT8", marks=pytest.mark.slow), ("float16", "FLOAT16")])
def test_the_file_has_small_weights_and_agrees_with_its_twin_in_every_runtime(chain, inputs, kind, wanted):
    made, folder = chain("cpu", kind)
    elements = stored(folder)
    assert elements[wanted] > 0.9 * sum(elements.values())
    assert stored(folder, "ptq.onnx") == elements
    parity = Parity.model_validate(json.loads((folder / "parity.json").read_text()))
    assert not parity.broken
    assert all(rung.passed for rung in parity.rungs if rung.passed is not None)
    judged = [rung for rung in parity.rungs if rung.name.startswith("twin → ") and rung.file == "model.onnx"]
    assert {rung.name.split()[2] for rung in judged} == {"ONNX", "onnxruntime", "openvino"}
    assert all(rung.passed and rung.mean_difference < 1e-5 for rung in judged)  # there are no integers to flip
    assert json.loads((folder / "lint.json").read_text())["findings"] == []
    told = Outcome.model_validate(json.loads((made / "quantization.json").read_text()))
    assert (told.scheme.kind, told.calibration_samples) == (kind, 0)
    assert told.shipped == {"weights-only": "int8 weights", "float16": "float16"}[kind]


def test_weights_alone_are_fine_tuned(chain):
    made, _ = chain("cpu", "weights-only", epochs=1, exported=False)
    told = Outcome.model_validate(json.loads((made / "quantization.json").read_text()))
    assert told.qat is not None
    layers = [module for module in load_network(made).module.modules() if isinstance(module, FrozenLayer)]
    assert len(layers) == 10
    assert all(float((layer.weight / layer.weight_scale).abs().max()) < 127.01 for layer in layers)  # all 8 bits: no integer sum can saturate


def test_float16_moves_no_weight_that_training_would_have_to_mend(chain):
    made, _ = chain("cpu", "float16", epochs=5, exported=False)
    told = Outcome.model_validate(json.loads((made / "quantization.json").read_text()))
    assert (told.qat, told.kept) == (None, "ptq")
    assert json.loads((made / "history.json").read_text()) == {"trainings": []}
    layers = [module for module in load_network(made).module.modules() if isinstance(module, FrozenFloatLayer)]
    assert all(torch.equal(layer.weight, layer.weight.half().float()) for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu", "npu"])
def test_accelerators_get_files_that_compute_in_float16(chain, target):
    made, folder = chain(target, "float16", float_layers=("linear",))
    nodes = onnx.load(folder / "model.onnx").graph.node
    casts = [attribute.i for node in nodes if node.op_type == "Cast" for attribute in node.attribute]
    assert casts.count(onnx.TensorProto.FLOAT16) == 2  # behind the normalisation, behind the layer that is kept
    with open_session(load_profile(target, at="test").runtimes[0].name, folder / "model.onnx") as session:
        x = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
        twin = TorchPredictor(load_network(made).module)(x)
        assert session(x).dtype == np.float32
        np.testing.assert_allclose(session(x), twin, atol=1e-2 * np.abs(twin).max())
    told = Outcome.model_validate(json.loads((made / "quantization.json").read_text()))
    assert told.shipped == "float16, 1 layer float32"


@pytest.mark.slow
def test_tensorrt_gets_weights_as_it_reads_them(chain):
    _, folder = chain("gpu", "weights-only")
    operators = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert operators.count("DequantizeLinear") == 10
    assert "QuantizeLinear" not in operators


def test_a_value_that_float16_cannot_hold_stops_the_stage(inputs, tiny, context):
    network = tiny(width=0.5)
    network.module.eval()
    with torch.no_grad():
        network.module.body.linear.weight[0, 0] = 1e6
    start = save_network(network, _made(context.folder / "network"))
    given = replace(inputs, artifacts={"prune": start, "teacher": start}, profile=load_profile("cpu", at="test", scheme="float16"))
    with pytest.raises(ConfigError, match=r"a weight of the layer 'body\.linear' reaches 1,000,000, float16 ends at 65,504"):
        qat.run(given, QatConfig(epochs=0), context)
