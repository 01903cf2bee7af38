"""ONNX Runtime on an NVIDIA GPU through CUDA."""

from kdpipe.targets.runtimes.onnxruntime import OnnxRuntime

plugin = OnnxRuntime("onnxruntime-cuda", do="on a machine with an NVIDIA GPU and CUDA: python -m pip install 'onnxruntime-gpu[cuda,cudnn]'")
