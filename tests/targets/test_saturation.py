"""The file that the bundles' loader asks: exact where the CPU has an int8 dot product, half the answer where it has none."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.saturation import ANSWER, SHAPE, saturation_model

ASK = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(json.dumps(session.run(None, {"x": numpy.ones((4, 64), numpy.float32)})[0].ravel().tolist()))
"""


def test_the_answer_is_exact_on_a_cpu_with_an_int8_dot_product_and_saturated_without():
    session = onnxruntime.InferenceSession(saturation_model(), providers=["CPUExecutionProvider"])
    answer = session.run(None, {"x": np.ones(SHAPE, np.float32)})[0]
    if {"vnni", "aarch64"} & probe():
        assert np.allclose(answer, ANSWER, rtol=1e-6)
    else:
        assert (answer < 0.6 * ANSWER).all()


@pytest.mark.slow
def test_a_cpu_without_one_saturates_to_what_two_products_in_16_bits_give(tmp_path):
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None or "x86-64" not in probe():
        pytest.skip("qemu-x86_64 and an x86 Python are needed")
    model = tmp_path / "saturation.onnx"
    model.write_bytes(saturation_model())
    done = subprocess.run([emulator, "-cpu", "Haswell", sys.executable, "-c", ASK, str(model)], capture_output=True, text=True, timeout=120, check=True)
    pairs = ANSWER / 2
    expected = pairs * (2**15 - 1) / (255 * 127)  # each pair of products, 64 770, is cut at 32 767
    assert np.allclose(json.loads(done.stdout), expected, atol=ANSWER / 255)  # one step of the output's scale


def test_equal_calls_give_equal_bytes():
    assert saturation_model() == saturation_model.__wrapped__()
