import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.cold_start import cold_start
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import StartRequest


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_cold_start_is_measured_in_a_process_that_is_not_this_one(runtime, files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    ballast = np.ones(40_000_000)  # 320 MB resident here must not count there
    request = StartRequest(runtime=runtime, model=files / "u8.onnx", threads=1, batch=1, inputs=tmp_path / "inputs.npy")
    start = cold_start(LocalDevice(), "int8", request, runtime_name=f"{runtime} x CPU", times=2)
    assert (start.model, start.runtime) == ("int8", f"{runtime} x CPU")
    assert start.load_ms > 0
    assert start.first_inference_ms > 0
    assert 10e6 < start.peak_memory_bytes < ballast.nbytes


def test_a_file_that_does_not_load_there_is_unavailable(tmp_path, samples):
    np.save(tmp_path / "inputs.npy", samples)
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    request = StartRequest(runtime="onnxruntime", model=tmp_path / "broken.onnx", threads=1, batch=1, inputs=tmp_path / "inputs.npy")
    with pytest.raises(UnavailableError) as caught:
        cold_start(LocalDevice(), "int8", request, runtime_name="onnxruntime x CPU")
    (problem,) = caught.value.problems
    assert problem.message.startswith("the device could not run it: ")
    assert (problem.at, problem.do) == ("device host", "check that the runtime is installed there and that the file loads in it")
