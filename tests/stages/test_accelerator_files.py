"""The files that kdpipe itself makes for accelerators that are not here break none of the rules by which they can be judged without them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.foundation.networks import build_network
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.randomness import stream
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.lint import lint
from kdpipe.targets.openvino_ir import write_ir
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.image_classification import ImageClassification

FAMILIES = [("resnet-8", {"width": 0.5}), pytest.param("mobilenetv2-0.1", {}, marks=pytest.mark.slow), ("cnn-small", {})]


@pytest.mark.parametrize("target", ["gpu", "npu"])
@pytest.mark.parametrize(("network", "arguments"), FAMILIES)
def test_a_file_for_an_accelerator_breaks_no_rule_and_answers_as_its_twin(digits: Any, tmp_path: Path, network: str, arguments: Any, target: str) -> None:
    profile = load_profile(target, at="test")
    spec = ImageClassification(data="digits", augment=()).network_spec(network, arguments, digits, at="test")
    x = digits.train.read(np.arange(64))
    module = build_network(spec, stream(0, network)).module.train()
    with torch.no_grad():
        for _ in range(5):
            module(torch.from_numpy(x))  # BatchNorm sees the data: an untrained network has no other statistics
    twin = prepare(module.eval(), profile.chosen_scheme, batch_norm="folded")
    calibrate_(twin, [torch.from_numpy(x)])
    frozen = freeze(twin)
    path = tmp_path / "model.onnx"
    path.write_bytes(twin_file(frozen, spec.contract, profile))

    assert lint(path, profile) == ()
    expected = TorchPredictor(frozen)(x)
    with open_session(profile.runtimes[0].name, path) as session:
        assert np.abs(session(x) - expected).mean() <= 0.01 * np.ptp(expected, axis=1).mean()
    if "openvino-ir" in profile.formats:
        xml, _ = write_ir(path, tmp_path, x[:8])
        assert lint(xml, profile) == ()
