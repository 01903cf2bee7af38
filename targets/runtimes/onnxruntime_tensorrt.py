"""ONNX Runtime on an NVIDIA GPU through TensorRT, which builds its engine from the Q/DQ file when it is loaded."""

from kdpipe.targets.runtimes.onnxruntime import OnnxRuntime

plugin = OnnxRuntime(
    "onnxruntime-tensorrt", do="on a machine with an NVIDIA GPU, CUDA and TensorRT: python -m pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt"
)
