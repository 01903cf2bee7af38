import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from kdpipe.foundation import exporter_registry
from kdpipe.foundation.onnx_file import to_bytes, to_onnx


def test_two_exports_read_the_table_once_and_write_what_an_untouched_exporter_would(monkeypatch):
    reads = []
    read = exporter_registry._read
    monkeypatch.setattr(exporter_registry, "_read", lambda **named: reads.append(named) or read(**named))
    exporter_registry._read_once.cache_clear()
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()).eval()
    first, second = (to_bytes(to_onnx(module, (1, 2, 2), opset=19, static_batch=None)) for _ in range(2))
    assert len(reads) == 1, "torch's exporter does not read its table through ONNXRegistry.from_torchlib any more"
    monkeypatch.setattr("kdpipe.foundation.onnx_file.kept_registry", torch.no_grad)  # any context that does nothing to the table
    assert to_bytes(to_onnx(module, (1, 2, 2), opset=19, static_batch=None)) == first == second


def test_afterwards_the_exporter_is_as_it_was():
    before = ONNXRegistry.from_torchlib
    with exporter_registry.kept_registry():
        assert ONNXRegistry.from_torchlib != before
    assert ONNXRegistry.from_torchlib == before
