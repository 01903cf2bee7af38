"""OpenVINO on an Intel GPU."""

from kdpipe.targets.runtimes.openvino import OpenVino

plugin = OpenVino("openvino-gpu", do="on a machine with an Intel GPU install its driver (docs.openvino.ai: configurations for Intel GPU)")
