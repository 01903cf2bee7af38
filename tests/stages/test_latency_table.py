import json
from dataclasses import replace

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.stages.file_latency import stopwatch
from kdpipe.stages.latency_table import FOLDER, LatencyTable, Setting, grid
from kdpipe.stages.layer_files import LayerShape
from kdpipe.targets.profile import load_profile


def conv(inputs, outputs, size=4):
    return LayerShape(op="conv", inputs=inputs, outputs=outputs, size=(size, size), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))


def depthwise(width):
    return LayerShape(op="conv", inputs=width, outputs=width, size=(4, 4), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=width)


@pytest.fixture
def setting(blocks):
    return Setting(blocks.identity(), "onnxruntime", "1.32.0", 1, 1, "latency", Scheme(), 19, None)


@pytest.fixture
def opened(setting, tmp_path, listener):
    def table(**changed):
        return LatencyTable.opened(replace(setting, **changed), tmp_path, listener.said.append)

    return table


def files(project):
    return sorted((project / FOLDER).iterdir())


def test_a_layer_s_time_is_the_difference_of_the_two_files(opened, blocks, listener, law):
    table = opened()
    assert table.measure([conv(8, 16), depthwise(12)], blocks, listener) == 2
    assert table.ns(conv(8, 16)) == pytest.approx(law(16, 9, 8, 16), abs=1)
    assert table.ns(depthwise(12)) == pytest.approx(law(16, 9, 1, 12, depthwise=True), abs=1)
    entry = table.entries[conv(8, 16).name]
    assert entry.low_ns <= entry.ns <= entry.high_ns
    assert (entry.windows, entry.runs) == (20, 2 * 20 * 4)


def test_what_was_measured_is_found_again_and_only_the_rest_is_asked_for(opened, blocks, listener):
    opened().measure([conv(8, 16)], blocks, listener)
    table = opened()
    assert table.missing([conv(8, 16), conv(8, 32), conv(8, 32)]) == [conv(8, 32)]
    assert table.measure([conv(8, 16), conv(8, 32)], blocks, listener) == 1
    assert len(blocks.asked) == 2


def test_measuring_that_was_interrupted_goes_on(opened, blocks, listener):
    shapes = [conv(4, width) for width in range(4, 4 * 31, 4)]  # more than one request
    blocks.breaks_after = 26
    with pytest.raises(UnavailableError, match="the link was cut"):
        opened().measure(shapes, blocks, listener)
    blocks.breaks_after = None
    table = opened()
    assert len(table.entries) == 24  # the requests that were answered whole
    assert table.measure(shapes, blocks, listener) == 6


@pytest.mark.parametrize(
    "changed",
    [{"threads": 2}, {"runtime_version": "1.33.0"}, {"scheme": Scheme(weight_bits=8)}, {"batch": 4}, {"device": {"cpu": "another"}}],
    ids=["threads", "runtime", "scheme", "batch", "device"],
)
def test_another_setting_has_a_table_of_its_own(opened, blocks, listener, changed, tmp_path):
    opened().measure([conv(8, 16)], blocks, listener)
    other = opened(**changed)
    assert not other.entries
    assert other.path not in files(tmp_path)


def test_a_device_keeps_its_table_under_another_name(opened, blocks, listener):
    opened().measure([conv(8, 16)], blocks, listener)
    blocks.name = "renamed"
    assert opened(device=blocks.identity()).entries


def test_a_table_copied_from_another_device_is_not_used(opened, blocks, listener, tmp_path):
    opened().measure([conv(8, 16)], blocks, listener)
    [path] = files(tmp_path)
    other = opened(device={"cpu": "another"})
    path.rename(other.path)
    listener.said.clear()
    assert not opened(device={"cpu": "another"}).entries
    assert listener.said == [f"the latency table {other.path.name[:12]}… is of another device or setting than its name says: not used"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"identity": {}, "entries": [{"shape": 1}]}'], ids=["empty", "cut short", "bytes", "other keys"])
def test_a_damaged_table_is_set_aside_and_measured_anew(opened, blocks, listener, tmp_path, content):
    opened().measure([conv(8, 16)], blocks, listener)
    [path] = files(tmp_path)
    path.write_bytes(content)
    listener.said.clear()
    table = opened()
    assert not table.entries
    assert "cannot be read" in listener.said[0]
    assert path.with_suffix(".damaged").read_bytes() == content
    table.measure([conv(8, 16)], blocks, listener)
    assert opened().entries


def test_a_time_below_zero_in_a_table_is_damage(opened, blocks, listener, tmp_path):
    opened().measure([conv(8, 16)], blocks, listener)
    [path] = files(tmp_path)
    content = json.loads(path.read_text())
    content["entries"][0]["ns"] = -5.0
    path.write_text(json.dumps(content))
    assert not opened().entries


def test_two_builds_at_once_lose_nothing_of_each_other(opened, blocks, listener):
    first, second = opened(), opened()
    first.measure([conv(8, 16)], blocks, listener)
    second.measure([conv(8, 32)], blocks, listener)
    assert set(opened().entries) == {conv(8, 16).name, conv(8, 32).name}


def test_between_measured_inputs_it_interpolates_and_keeps_what_the_kernels_dislike(opened, blocks, listener, law):
    """The blocks computes in fours of inputs: 30 take as long as 32."""
    widths, outputs = list(range(8, 66, 2)), [16, 32, 48, 64]
    table = opened()
    table.measure(grid(conv(64, 64), widths, outputs), blocks, listener)
    assert len(table.entries) == 3 * 4 + len(widths) - 3
    for inputs in widths:
        for made in outputs:
            assert table.ns(conv(inputs, made)) == pytest.approx(law(16, 9, inputs, made), rel=0.05), (inputs, made)  # the law's constant part does not scale


def test_a_width_of_the_outputs_that_was_not_measured_lies_between_its_neighbours(opened, blocks, listener):
    table = opened()
    table.measure([conv(8, 16), conv(8, 32)], blocks, listener)
    low, high = table.ns(conv(8, 16)), table.ns(conv(8, 32))
    assert low <= table.ns(conv(8, 20)) <= high
    assert table.ns(conv(8, 8)) == low  # beyond them nothing is promised


def test_the_grid_has_every_output_at_few_inputs_and_every_input_at_the_widest_output():
    widths = {(shape.inputs, shape.outputs) for shape in grid(conv(64, 64), [64, 56, 48, 32, 16], [64, 32])}
    assert widths == {(inputs, outputs) for inputs in (16, 48, 64) for outputs in (32, 64)} | {(32, 64), (56, 64)}
    assert [shape.outputs for shape in grid(depthwise(16), [16], [16, 12])] == [12, 16, 16]


def test_this_host_measures_a_wider_layer_as_slower(tmp_path, listener):
    profile = load_profile("cpu", at="test")
    with stopwatch(profile, None, tmp_path) as watch:
        table = LatencyTable.opened(watch.setting, tmp_path, listener.said.append)
        table.measure([conv(8, 8, 28), conv(64, 64, 28)], watch.device, listener)
        assert table.ns(conv(64, 64, 28)) > 2 * table.ns(conv(8, 8, 28))


@pytest.mark.slow
def test_a_board_over_ssh_measures_layers_as_this_host_does(pi, setting, tmp_path, listener):
    with pi.connected():
        there = replace(setting, device=pi.identity(), runtime_version=pi.facts().runtimes["onnxruntime"])
        table = LatencyTable.opened(there, tmp_path, listener.said.append)
        assert table.measure([conv(8, 8, 28), conv(64, 64, 28)], pi, listener) == 2
    assert table.ns(conv(64, 64, 28)) > 2 * table.ns(conv(8, 8, 28))
