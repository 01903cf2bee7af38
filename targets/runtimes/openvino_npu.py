"""OpenVINO on an Intel NPU: static shapes, float16 for what is not int8."""

from kdpipe.targets.runtimes.openvino import OpenVino

plugin = OpenVino("openvino-npu", do="on a machine with an Intel NPU install its driver (docs.openvino.ai: configurations for Intel NPU)")
