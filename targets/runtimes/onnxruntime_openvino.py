"""ONNX Runtime on an Intel CPU through OpenVINO's provider."""

from kdpipe.targets.runtimes.onnxruntime import OnnxRuntime

plugin = OnnxRuntime("onnxruntime-openvino", do="in an environment of its own: python -m pip install onnxruntime-openvino; or use the runtime openvino")
