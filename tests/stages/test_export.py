import getpass
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.networks import InputContract, NetworkSpec, build_network, load_network, save_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.randomness import stream
from kdpipe.stages import export, qat, twin_file
from kdpipe.stages.export import ExportConfig
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.parity import Parity, allowed_disagreements
from kdpipe.stages.qat import QatConfig
from kdpipe.stages.stage import Inputs
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.image_classification import ImageClassification

PLAIN = parse_objective("plain", {}, at="test")
FAMILIES = {"resnet": ("resnet-8", {"width": 0.5}, 10), "mobilenetv2": ("mobilenetv2-0.1", {}, 53), "cnn": ("cnn-small", {}, 5)}
"""name, arguments, and how many convolutions and linear layers it has"""

SLOW_FAMILIES = [pytest.param("resnet", marks=pytest.mark.slow), pytest.param("mobilenetv2", marks=pytest.mark.slow), "cnn"]
EPOCHS = {"resnet": 5, "mobilenetv2": 25, "cnn": 5}


@pytest.fixture(scope="session")
def quantized(digits, taught, context_in, tmp_path_factory):
    """`quantized("resnet", "cpu")`: the artifacts of prune and qat for a network of that family, briefly trained; each made once."""
    made: dict[tuple[str, str], dict[str, Path]] = {}

    def make(family, target):
        if (family, target) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{target}")
            name, arguments, _ = FAMILIES[family]
            pruned = taught(name, arguments, begins=family, epochs=EPOCHS[family])
            (folder / "qat").mkdir()
            inputs = Inputs({"prune": pruned, "teacher": pruned}, digits, ImageClassification(data="digits", augment=()), load_profile(target, at="test"))
            qat.run(inputs, QatConfig(epochs=1, batch_size=32, objective=PLAIN), context_in(folder / "qat"))
            made[family, target] = {"prune": pruned, "teacher": pruned, "qat": folder / "qat"}
        return made[family, target]

    return make


@pytest.fixture(scope="session")
def exported(quantized, digits, context_in, tmp_path_factory):
    """`exported("resnet", "cpu")`: a finished export folder, made once."""
    made: dict[tuple[str, str], Path] = {}

    def make(family="cnn", target="cpu"):
        if (family, target) not in made:
            folder = tmp_path_factory.mktemp("export")
            inputs = Inputs(quantized(family, target), digits, ImageClassification(data="digits", augment=()), load_profile(target, at="test"))
            made[family, target] = export.run(inputs, ExportConfig(), context_in(folder))
        return made[family, target]

    return make


@pytest.fixture
def cpu(inputs, quantized):
    return replace(inputs, artifacts=quantized("cnn", "cpu"), profile=load_profile("cpu", at="test"))


def read(folder, name):
    return json.loads((folder / name).read_text())


def validation(digits):
    return digits.validation.read(np.arange(len(digits.validation))), digits.validation.labels


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("family", SLOW_FAMILIES)
def test_every_convolution_and_linear_layer_runs_fused_in_int8(exported, digits, family, runtime):
    x, _ = validation(digits)
    with open_session(runtime, exported(family) / "model.onnx") as session:
        told = session.explain(x[:8])
    compute = [
        node
        for node in told.nodes
        if node.operator in {"Conv", "FusedConv", "Gemm", "MatMul", "QLinearConv", "QGemm", "QLinearMatMul", "Convolution", "FullyConnected"}
    ]
    assert len(compute) == FAMILIES[family][2]
    assert {node.precision for node in compute} == {"int8"}
    assert told.int8_share == 1.0
    assert not any("not fused" in finding or "run in float" in finding for finding in told.findings)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("family", SLOW_FAMILIES)
def test_the_file_answers_as_its_twin(exported, quantized, digits, family, runtime):
    x, labels = validation(digits)
    x = np.concatenate([x, np.clip(x + np.random.default_rng(0).normal(0, 0.1, x.shape), 0, 1).astype(np.float32)])  # noisy ones too: 200
    twin = TorchPredictor(load_network(quantized(family, "cpu")["qat"]).module)(x)
    with open_session(runtime, exported(family) / "model.onnx") as session:
        logits = session(x)
    assert (twin.argmax(1)[: len(labels)] == labels).mean() > 0.6
    assert (logits.argmax(1) != twin.argmax(1)).sum() <= allowed_disagreements(len(x))
    assert np.abs(logits - twin).mean() <= 0.02 * np.ptp(twin, axis=1).mean()


def test_all_files_are_there_and_say_what_they_are(exported, digits):
    folder = exported("cnn")
    assert sorted(path.name for path in folder.iterdir()) == [
        "contract.json",
        "float.onnx",
        "lint.json",
        "model.onnx",
        "parity.json",
        "ptq.onnx",
        "teacher.onnx",
    ]
    assert read(folder, "contract.json") == {
        "inputs": [{"name": "input", "shape": ["batch", 1, 8, 8], "type": "float32", "low": 0.0, "high": 1.0}],
        "outputs": [{"name": "logits", "shape": ["batch", 10], "type": "float32"}],
        "labels": list(digits.classes),
    }
    assert read(folder, "lint.json") == {"profile": "cpu", "findings": []}
    parity = Parity.model_validate(read(folder, "parity.json"))
    assert parity.broken == ()
    assert {rung.file for rung in parity.rungs} == {None, "model.onnx", "teacher.onnx", "float.onnx", "ptq.onnx"}
    assert (folder / "model.onnx").stat().st_size < 0.5 * (folder / "float.onnx").stat().st_size


def test_the_calibrated_network_is_another_file_of_the_same_form(exported):
    folder = exported("cnn")
    model, ptq = (onnx.load(folder / name) for name in ("model.onnx", "ptq.onnx"))
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in ptq.graph.node]
    assert sha256_of(folder / "model.onnx") != sha256_of(folder / "ptq.onnx")


def test_no_file_tells_of_the_machine(exported, quantized):
    folder = exported("cnn")
    words = [str(folder), str(quantized("cnn", "cpu")["qat"]), str(Path.cwd()), "site-packages", "Traceback", "stack_trace", ".py", f"/{getpass.getuser()}/"]
    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        assert [word for word in words if word.encode() in content] == [], path.name


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes(exported, cpu, context):
    again = export.run(cpu, ExportConfig(), context)
    assert {path.name: sha256_of(path) for path in again.iterdir()} == {path.name: sha256_of(path) for path in exported("cnn").iterdir()}


@pytest.mark.slow
def test_the_arm_file_is_static_and_signed_and_cuts_off_what_a_relu_does(exported):
    model = onnx.load(exported("cnn", "arm") / "model.onnx")
    assert [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 8, 8]
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    points = {node.input[0]: values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {point.dtype for point in points.values()} == {np.dtype(np.int8)}
    behind = [points[node.output[0]].item() for node in model.graph.node if node.op_type == "Relu"]
    assert len(behind) >= 2
    assert set(behind) == {-128}
    assert read(exported("cnn", "arm"), "contract.json")["inputs"][0]["shape"] == [1, 1, 8, 8]


@pytest.mark.slow
def test_openvino_targets_get_ir_beside_the_file(exported):
    folder = exported("cnn", "npu")
    assert {"model.xml", "model.bin"} <= {path.name for path in folder.iterdir()}
    runtimes = {rung.name.split()[2]: rung for rung in Parity.model_validate(read(folder, "parity.json")).rungs}
    assert runtimes["openvino"].file == "model.xml"


def test_a_file_that_breaks_its_targets_rules_stops_the_stage(cpu, context):
    strict = replace(cpu, profile=cpu.profile.model_copy(update={"forbidden": ("Conv",)}))
    with pytest.raises(VerificationError) as raised:
        export.run(strict, ExportConfig(), context)
    (problem,) = raised.value.problems
    assert problem.message.startswith("the target 'cpu' does not take the file: body.layers.0.0: the target does not run Conv and 3 more, see lint.json")
    assert problem.at == str(context.folder / "model.onnx")
    assert problem.do == "rewrite this part of the network without it"
    assert len(read(context.folder, "lint.json")["findings"]) == 4


def test_an_operator_that_cannot_be_exported_stops_the_stage(cpu, context, tmp_path, digits):
    """The teacher has it; it is in evaluation what the student need not have."""
    contract = InputContract(shape=digits.shape, labels=digits.classes)
    spec = NetworkSpec(factory=f"{__name__}:eigen", contract=contract, mean=(0.3,), std=(0.3,))
    teacher = save_network(build_network(spec, stream(0, "teacher")), tmp_path / "odd")
    with pytest.raises(ConfigError) as raised:
        export.run(replace(cpu, artifacts={**cpu.artifacts, "teacher": teacher}), ExportConfig(), context)
    (problem,) = raised.value.problems
    assert problem.message == "the operator 'aten._linalg_eigh' has no counterpart in ONNX opset 19"
    assert problem.at == "body"
    assert problem.do == "replace it by operations that ONNX has, or raise the profile's opset"


class Eigen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].transpose(1, 2)))


def eigen():
    return Eigen()


@pytest.mark.slow
def test_a_file_that_does_not_agree_with_its_twin_stops_the_stage_and_leaves_the_evidence(cpu, context, monkeypatch):
    def wrong(twin, **how):
        """The twin's file with a doubled scale in its last layer but one."""
        module = exportable(twin, **how)
        layer = module.get_submodule("body.layers.3.0")
        layer.weight_scale.mul_(2.0)
        return module

    exportable = twin_file.exportable
    monkeypatch.setattr(twin_file, "exportable", wrong)
    with pytest.raises(VerificationError) as raised:
        export.run(cpu, ExportConfig(), context)
    (problem,) = raised.value.problems
    assert raised.value.exit_code == 5
    assert problem.message.endswith("the first node whose output diverges: 'body.layers.3.0'")
    assert Parity.model_validate(read(context.folder, "parity.json")).broken[0].diverges_at == "body.layers.3.0"


@pytest.mark.slow
def test_another_quantizer_of_the_same_network_is_about_as_accurate(exported, digits, tmp_path):
    """ONNX Runtime's static post-training quantization of float.onnx, unsigned with reduced range: an independent implementation."""
    folder = exported("resnet")
    x, labels = validation(digits)

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"input": digits.train.read(np.arange(len(digits.train)))}])

        def get_next(self):
            return next(self.batches, None)

    quantize_static(
        folder / "float.onnx", tmp_path / "other.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    accuracies = {}
    for path in (folder / "ptq.onnx", tmp_path / "other.onnx", folder / "float.onnx"):
        with open_session("onnxruntime", path) as session:
            accuracies[path.stem] = (session(x).argmax(1) == labels).mean()
    assert accuracies["float"] > 0.6
    assert accuracies["ptq"] >= accuracies["other"] - 0.03  # three of 100 samples
