import numpy as np
import pytest

from kdpipe.foundation.errors import VerificationError
from kdpipe.targets import openvino_ir
from kdpipe.targets.openvino_ir import write_ir
from kdpipe.targets.runtimes.runtime import open_session


@pytest.mark.parametrize("name", ["u8.onnx", "u8-one.onnx", "float.onnx"])
def test_the_ir_gives_the_logits_of_the_onnx_file_and_keeps_its_batch(files, samples, tmp_path, name):
    xml, weights = write_ir(files / name, tmp_path, samples)
    assert (xml, weights) == (tmp_path / "model.xml", tmp_path / "model.bin")
    with open_session("openvino", files / name) as original, open_session("openvino", xml) as converted:
        np.testing.assert_allclose(converted(samples), original(samples), atol=0.05)  # one int8 step at an edge
        assert (converted(samples).argmax(1) == original(samples).argmax(1)).mean() >= 0.95
        assert converted._loaded.batch == original._loaded.batch


def test_an_int8_ir_keeps_its_integer_layers(files, samples, tmp_path):
    xml, _ = write_ir(files / "u8-one.onnx", tmp_path, samples)
    with open_session("openvino", xml) as converted:
        assert converted.explain(samples).int8_share == 1.0


def test_the_ir_names_no_folder_of_the_machine_that_built_it(files, samples, tmp_path):
    xml, _ = write_ir(files / "u8.onnx", tmp_path, samples)
    assert str(files.parent) not in xml.read_text()


def test_a_file_that_openvino_cannot_convert_fails_verification(samples, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(VerificationError) as caught:
        write_ir(path, tmp_path, samples)
    (problem,) = caught.value.problems
    assert problem.message.startswith("the file does not load in openvino: ")
    assert (problem.at, problem.do) == (str(path), "build it again; a file from elsewhere: check it with onnx.checker")


def test_an_ir_with_other_logits_fails_verification(files, samples, tmp_path, monkeypatch):
    def opened(runtime, model, **settings):
        # stands for a converter that errs: reading back gives another network
        return open_session(runtime, files / "wide.onnx" if model.suffix == ".xml" else model, **settings)

    monkeypatch.setattr(openvino_ir, "open_session", opened)
    with pytest.raises(VerificationError) as caught:
        write_ir(files / "u8.onnx", tmp_path, samples)
    (problem,) = caught.value.problems
    assert "the IR gives other logits than the ONNX file (largest difference" in problem.message
    assert problem.at == str(tmp_path / "model.xml")
    assert problem.do is not None
    assert "use the ONNX file" in problem.do
