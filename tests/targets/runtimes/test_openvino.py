import pytest

from kdpipe.targets.runtimes.runtime import open_session


@pytest.fixture
def explained(files, samples):
    def explain(name: str):
        with open_session("openvino", files / name) as session:
            return session.explain(samples)

    return explain


def test_float_layers_stay_in_float32_also_on_a_cpu_that_has_bfloat16(explained):
    layers = [node for node in explained("float.onnx").nodes if node.operator in ("Convolution", "FullyConnected")]
    assert len(layers) == 4
    assert {node.precision for node in layers} == {"float32"}


def test_a_fused_file_names_the_layers_that_went_into_each_convolution(explained):
    convolutions = [node for node in explained("u8.onnx").nodes if node.operator == "Convolution"]
    assert len(convolutions) == 3
    assert all(node.precision == "int8" and any("QuantizeLinear" in name for name in node.fused) and "kernel" in node.note for node in convolutions)


def test_signed_files_run_in_int8_too(explained):
    assert explained("s8.onnx").int8_share == 1.0


def test_a_quantized_file_with_a_float_layer_names_it(edited, samples):
    def unquantize(model):
        """conv3 takes the values before its input's quantizer."""
        graph = model.graph
        conv = next(node for node in graph.node if node.op_type == "Conv" and node.name.startswith("conv3"))
        dequantize = next(node for node in graph.node if node.output[0] == conv.input[0])
        quantize = next(node for node in graph.node if node.output[0] == dequantize.input[0])
        conv.input[0] = quantize.input[0]
        graph.node.remove(dequantize)
        graph.node.remove(quantize)

    with open_session("openvino", edited("u8.onnx", unquantize)) as session:
        explanation = session.explain(samples)
    assert explanation.int8_share == 0.75
    assert any("1 of 4 convolutions and linear layers run in float: conv3" in finding.text for finding in explanation.findings)


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_threads_streams_hint_and_accuracy_are_set(files, hint):
    with open_session("openvino", files / "u8.onnx", threads=2, hint=hint) as session:
        told = {key: session._loaded.handle.get_property(key) for key in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "EXECUTION_MODE_HINT")}
    assert (told["INFERENCE_NUM_THREADS"], told["NUM_STREAMS"], str(told["PERFORMANCE_HINT"]).rsplit(".", 1)[-1]) == (2, 1, hint.upper())
    assert str(told["EXECUTION_MODE_HINT"]).endswith("ACCURACY")
