"""ONNX Runtime on the CPU through XNNPACK, with XNNPACK's own threads. No wheel on PyPI has it: it is built with --use_xnnpack."""

from kdpipe.targets.runtimes.onnxruntime import OnnxRuntime

plugin = OnnxRuntime("onnxruntime-xnnpack", do="use an onnxruntime built with --use_xnnpack (PyPI's wheels are not), or the runtime onnxruntime")
