import getpass
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.onnx_file import read_onnx, to_bytes, to_onnx, with_output


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
        self.linear = nn.Linear(108, 4)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.rand(value.shape, generator=generator))

    def forward(self, x):
        return self.linear(self.block(x).flatten(1))


class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x @ x.transpose(2, 3)).flatten(1)


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1)
        self.inner = Eigen()

    def forward(self, x):
        return self.inner(self.scale(x))


class ByBatch(nn.Module):
    def forward(self, x):
        return x.flatten(1) * (2 if x.sum() > 0 else 1)


def exported(module=None, **changed):
    return to_onnx((module or Small()).eval(), (1, 8, 8), **{"opset": 19, "static_batch": None, **changed})


def digest():
    return hashlib.sha256(to_bytes(exported())).hexdigest()


def ran(model, x):
    return onnxruntime.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


@pytest.mark.parametrize("opset", [17, 19, 20])
def test_the_file_computes_what_the_network_computes(opset):
    x = torch.rand(5, 1, 8, 8)
    model = exported(opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    with torch.no_grad():
        assert np.allclose(ran(model, x.numpy()), Small().eval()(x).numpy(), rtol=1e-4, atol=1e-4)


def test_input_and_output_have_their_names_and_a_free_or_a_fixed_batch():
    for static, expected in ((None, "batch"), (3, 3)):
        model = exported(static_batch=static)
        (entry,), (result,) = model.graph.input, model.graph.output
        assert (entry.name, result.name) == ("input", "logits")
        sides = [[side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim] for value in (entry, result)]
        assert sides == [[expected, 1, 8, 8], [expected, 4]]


def test_nothing_tells_of_the_machine_or_the_code():
    content = to_bytes(exported())
    here = Path(__file__).resolve().parent
    for word in (str(here), str(Path.cwd()), "site-packages", ".py", "torch", "Small", f"/{getpass.getuser()}/"):
        assert word.encode() not in content, word


@pytest.mark.slow
def test_equal_networks_give_equal_bytes_in_another_process_as_well():
    code = f"import sys, hashlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_onnx_file as t; print(t.digest())"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # another order of sets
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
    assert other.stdout.strip() == digest()


def test_an_operator_that_onnx_lacks_is_named_with_its_module():
    with pytest.raises(ConfigError) as caught:
        exported(Holding())
    (problem,) = caught.value.problems
    assert problem.message == "the operator 'aten._linalg_eigh' has no counterpart in ONNX opset 19"
    assert problem.at == "inner"
    assert problem.do == "replace it by operations that ONNX has, or raise the profile's opset"


def test_a_network_that_decides_by_values_is_refused():
    with pytest.raises(ConfigError) as caught:
        exported(ByBatch())
    (problem,) = caught.value.problems
    assert problem.message.startswith("the network cannot be exported: GuardOnDataDependentSymNode: ")
    assert problem.at.endswith("ByBatch")
    assert problem.do == "forward must not decide by the values of tensors or by the batch size"


def test_an_inner_value_can_be_asked_for():
    model = exported()
    inner = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert np.allclose(ran(with_output(model, inner), x.numpy()), Small().eval().block(x).numpy(), atol=1e-5)
    assert [value.name for value in model.graph.output] == ["logits"]


def test_a_damaged_file_is_told():
    content = to_bytes(exported())
    assert to_bytes(read_onnx(content, at="model.onnx")) == content
    for damaged in (content[: len(content) // 2], b"not a model"):
        with pytest.raises(VerificationError) as caught:
            read_onnx(damaged, at="model.onnx")
        (problem,) = caught.value.problems
        assert problem.message.startswith("not a")
        assert problem.at == "model.onnx"
        assert problem.do.startswith("build the export stage again")
