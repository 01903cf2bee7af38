import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from kdpipe.foundation.errors import UnavailableError
from kdpipe.stages.bench import BenchConfig, run
from kdpipe.stages.device_quality import DeviceQualities
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets.devices.device import Machine
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import Bench
from kdpipe.targets.profile import load_profile

SHAPE = (1, 8, 8)
SAMPLES = np.random.default_rng(0).random((40, *SHAPE), dtype=np.float32)
QUICK = BenchConfig(seconds=0.05, batches=(1, 4), threads=(1, 2), percentiles=(50, 90), warmup_seconds=0.2)

pytestmark = pytest.mark.skipif("avx2" not in probe(), reason="the cpu target is measured on x86 with AVX2 only")


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.counted: list[str] = []
        self.said: list[str] = []

    def __call__(self, items, label, *, total=None, unit="batch"):
        items = list(items)
        assert total == len(items)
        self.counted.append(f"{label}: {total}")
        return items

    def say(self, message: str) -> None:
        self.said.append(message)


class TestSplit:
    __test__ = False
    labels = np.zeros(len(SAMPLES), np.int64)

    def __len__(self) -> int:
        return len(SAMPLES)

    def read(self, indices):
        return SAMPLES[indices]


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter([{"input": sample[None]} for sample in SAMPLES[:8]])

    def get_next(self):
        return next(self.feeds, None)


def network(channels: int, batch: int | str) -> onnx.ModelProto:
    generator = np.random.default_rng(channels)
    weights = {"w1": (channels, 1, 3, 3), "w2": (channels, channels, 3, 3), "w3": (10, channels)}
    constants = [numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32) * 0.2, name) for name, shape in weights.items()]
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], name="linear", transB=1),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *SHAPE])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])
    return helper.make_model(helper.make_graph(nodes, "net", [given], [result], constants), opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders as the export stage leaves them, by batch."""
    folders = {}
    for batch in ("batch", 1):
        folder = tmp_path_factory.mktemp("export")
        onnx.save(network(16, batch), folder / "float.onnx")
        onnx.save(network(64, batch), folder / "teacher.onnx")
        quantize_static(
            folder / "float.onnx",
            folder / "model.onnx",
            Calibration(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        folders[batch] = folder
    return folders


@pytest.fixture
def benched(exported, tmp_path):
    def run_bench(profile: str | Path, batch: int | str, config: BenchConfig = QUICK):
        progress = Recorder()
        inputs = Inputs({"export": exported[batch]}, SimpleNamespace(test=TestSplit()), None, load_profile(profile, at="test"))
        folder = run(inputs, config, Context(tmp_path, tmp_path, 0, 1, progress))
        return Bench.model_validate_json((folder / "bench.json").read_text()), progress

    return run_bench


@pytest.mark.slow
def test_a_cpu_target_is_measured_on_this_host_in_every_combination(benched):
    bench, progress = benched("cpu", "batch")
    runtimes = sorted({figure.runtime for figure in bench.latencies})
    assert [name.split()[0] for name in runtimes] == ["onnxruntime", "openvino"]
    measured = [(figure.model, figure.runtime, figure.batch, figure.threads) for figure in bench.latencies]
    assert sorted(measured) == sorted(itertools.product(("int8", "float", "teacher"), runtimes, (1, 4), (1, 2)))
    assert bench.not_measured is None
    assert bench.device is not None
    assert frozenset(bench.device.instruction_sets) == probe()
    assert progress.counted == ["bench cpu: 8", "cold start cpu: 6"]

    for figure in bench.latencies:
        assert figure.runs >= 64
        assert figure.p50.low_ms <= figure.p50.value_ms <= figure.p50.high_ms <= figure.p90.high_ms
        assert sum(figure.histogram_counts) == figure.runs
        assert figure.samples_per_second > 0
        assert (figure.ratio_to_float is None) is (figure.model == "float")
        if figure.runs < 662:
            assert figure.p99.reason == f"not claimable: {figure.runs} runs, 662 are needed"
    teacher = [figure.ratio_to_float for figure in bench.latencies if figure.model == "teacher" and figure.batch == 4]
    assert all(ratio.value_ms > 1.2 for ratio in teacher)  # 16 times the multiplications

    assert {(start.model, start.runtime) for start in bench.starts} == {(model, runtime) for model in ("int8", "float", "teacher") for runtime in runtimes}
    assert {explanation.runtime: explanation.int8_share for explanation in bench.explanations} == dict.fromkeys(runtimes, 1.0)
    assert len(bench.noise) == 8
    assert all(0.2 < check.ratio.value_ms < 5 for check in bench.noise)
    for figure in bench.latencies:
        if figure.model == "int8" and figure.ratio_to_float.low_ms > 1:
            assert any("int8 is not shown to be faster" in line and figure.runtime in line for line in bench.warnings)


@pytest.mark.parametrize("profile", ["arm", "gpu", "npu"])
def test_a_target_without_its_device_is_not_measured_but_checked_offline(benched, profile):
    bench, progress = benched(profile, 1)
    assert bench.not_measured.startswith("not measured: no device (")
    assert (bench.device, bench.latencies, bench.starts, bench.explanations) == (None, (), (), ())
    assert progress.said == [f"bench {profile}: {bench.not_measured}"]
    assert bench.warnings[-1].startswith("open until a device measures it: speed")
    unsigned = [line for line in bench.warnings if "activations are uint8, the target's scheme has int8" in line]
    assert bool(unsigned) is (profile in ("arm", "gpu"))


def test_each_comparison_has_a_verdict_on_what_the_machine_did(benched):
    bench, progress = benched("cpu", "batch", QUICK.model_copy(update={"threads": (1,), "batches": (1,), "modes": ("single-stream",)}))
    assert bench.starts == ()
    assert len(bench.conditions) == len(bench.noise) == 2  # two runtimes
    for met in bench.conditions:
        assert met.short == (met.seconds < 10)
        assert met.told in ("claimable", "throttled: not claimable") or met.told.startswith("noisy: ")
        assert len(met.cores) <= met.threads
    noisy = [met for met in bench.conditions if met.verdict != "claimable"]
    assert len([line for line in progress.said if any(met.told in line for met in noisy)]) == len(noisy)
    assert all(it.samples_per_second_bounds[0] <= it.samples_per_second <= it.samples_per_second_bounds[1] for it in bench.latencies)


def test_modes_choose_what_is_measured(benched):
    bench, _ = benched("cpu", "batch", QUICK.model_copy(update={"modes": ("throughput",), "streams": 2, "batches": (2,)}))
    assert (bench.latencies, bench.starts, bench.noise) == ((), (), ())
    assert {(it.model, it.runtime.split()[0], it.batch, it.streams) for it in bench.throughputs} == {
        (model, runtime, 2, 2) for model in ("int8", "float", "teacher") for runtime in ("onnxruntime", "openvino")
    }
    assert [met.streams for met in bench.conditions] == [2, 2]


def test_a_static_file_is_measured_at_its_own_batch_only(benched, tmp_path):
    own = tmp_path / "fixed.toml"
    own.write_text('extends = "cpu"\nbatch = "static"\n[[runtimes]]\nname = "onnxruntime"\n')
    bench, _ = benched(own, 1, BenchConfig(seconds=0.05, batches=(1, 32), threads=(1,), percentiles=(50,), warmup_seconds=0.1))
    assert {figure.batch for figure in bench.latencies} == {1}
    assert {figure.runtime.split()[0] for figure in bench.latencies} == {"onnxruntime"}


@pytest.fixture
def on_board(pi, exported, tmp_path):
    """The bench of a target whose device is the board."""

    def run_bench(profile: str | Path, *, changed: dict | None = None, batch: int | str = "batch", only_accuracy: bool = False):
        machine = Machine("pi", pi.settings, {**pi.identity(), **(changed or {})})
        there = {"accuracy_on": (machine,)} if only_accuracy else {"device": "pi", "machine": machine}
        config = QUICK.model_copy(update={"batches": (1,), "threads": (1,), **there})
        inputs = Inputs({"export": exported[batch]}, SimpleNamespace(test=TestSplit()), None, load_profile(profile, at="test"))
        folder = tmp_path / "work"
        folder.mkdir()
        run(inputs, config, Context(folder, pi.project, 0, 1, Recorder()))
        return Bench.model_validate_json((folder / "bench.json").read_text()), folder

    return run_bench


@pytest.fixture
def ort_only(tmp_path) -> Path:
    own = tmp_path / "board.toml"
    own.write_text('extends = "cpu"\n[[runtimes]]\nname = "onnxruntime"\n')
    return own


@pytest.mark.slow
def test_a_target_with_a_device_is_measured_and_judged_there(on_board, ort_only, board):
    bench, folder = on_board(ort_only)
    assert (bench.device.name, bench.device.kind) == ("pi", "ssh")
    assert {figure.model for figure in bench.latencies} == {"int8", "float", "teacher"}
    assert all(figure.runs >= 64 for figure in bench.latencies)
    assert len(bench.starts) == 3
    assert bench.energy or bench.energy_not_measured.startswith("not measured: ")
    assert bench.explanations == ()
    (quality,) = DeviceQualities.model_validate_json((folder / "device_quality.json").read_text()).qualities
    assert (quality.clean.n, quality.agreement.value, quality.largest_difference) == (len(SAMPLES), 100.0, 0.0)  # the same machine in truth
    with np.load(folder / "device_correct.npz") as arrays:
        (name,) = arrays.files
        assert name == f"pi/{quality.runtime}/clean"
        assert 100 * arrays[name].mean() == pytest.approx(quality.clean.value)
    board.until(lambda: not list(board.room.iterdir()), "nothing is left there")


@pytest.mark.slow
def test_a_device_that_only_judges_gives_accuracy_and_no_latency(on_board):
    bench, folder = on_board("arm", batch=1, only_accuracy=True)
    assert bench.not_measured.startswith("not measured: no device (the target is aarch64, this host is not)")
    (quality,) = DeviceQualities.model_validate_json((folder / "device_quality.json").read_text()).qualities
    assert quality.clean.n == len(SAMPLES)


def test_a_device_that_changed_since_the_plan_is_not_measured(on_board, ort_only):
    with pytest.raises(UnavailableError) as caught:
        on_board(ort_only, changed={"cores": 64, "runtimes": {"onnxruntime": "1.0"}})
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.message.startswith("device pi changed since the build was planned: cores 64 → ")
    assert "; onnxruntime 1.0 → " in problem.message
    assert problem.at == "device pi"
    assert problem.do == "run kdpipe build again: it measures the device as it is now"


def test_a_device_with_another_version_of_the_runtime_gives_no_number(on_board, tmp_path):
    own = tmp_path / "future.toml"
    own.write_text('extends = "cpu"\n[[runtimes]]\nname = "onnxruntime"\nversions = ">=999"\n')
    with pytest.raises(UnavailableError) as caught:
        on_board(own)
    (problem,) = caught.value.problems
    assert problem.message.startswith("device pi has onnxruntime 1.")
    assert problem.message.endswith(", >=999 is needed")
    assert problem.do.endswith(": python -m pip install 'onnxruntime>=999'")
    assert not (tmp_path / "work" / "bench.json").exists()


@pytest.mark.parametrize(
    ("target", "runtime", "able", "do"),
    [
        ("gpu", "onnxruntime-tensorrt", "onnxruntime", "on a machine with an NVIDIA GPU, CUDA and TensorRT"),
        ("npu", "openvino-npu", "openvino", "on a machine with an Intel NPU install its driver"),
    ],
)
def test_a_device_without_the_accelerator_gives_no_number_in_its_place(on_board, tmp_path, target, runtime, able, do):
    with pytest.raises(UnavailableError) as caught:
        on_board(target, batch=1)
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.message.startswith(f"device pi cannot run {runtime}: its {able} ")
    assert problem.at == "device pi"
    assert problem.do.startswith(do)
    assert not (tmp_path / "work" / "bench.json").exists()


@pytest.mark.slow
def test_an_accelerator_is_measured_where_the_device_has_its_runtime(on_board, tmp_path):
    """ONNX Runtime stands for TensorRT's: what is proven is that the runtime of the device is asked, and not the host's list."""
    own = tmp_path / "like-gpu.toml"
    own.write_text('extends = "npu"\n[[device_runtimes]]\nname = "onnxruntime"\n[bench]\npercentiles = [50]\n')
    bench, folder = on_board(own, batch=1)
    assert bench.not_measured is None
    assert {figure.runtime.split()[0] for figure in bench.latencies} == {"onnxruntime"}
    (quality,) = DeviceQualities.model_validate_json((folder / "device_quality.json").read_text()).qualities
    assert quality.runtime.startswith("onnxruntime 1.")


def test_a_runtime_of_the_wrong_version_is_unavailable(benched, tmp_path):
    own = tmp_path / "future.toml"
    own.write_text('extends = "cpu"\n[[runtimes]]\nname = "onnxruntime"\nversions = ">=999"\n')
    with pytest.raises(UnavailableError) as caught:
        benched(own, "batch")
    (problem,) = caught.value.problems
    assert ">=999 is needed" in problem.message
    assert (problem.at, problem.do) == ("profile future", "python -m pip install 'onnxruntime>=999'")


def test_the_artifact_is_json_without_machine_paths(benched, tmp_path, exported):
    benched("arm", 1)
    text = (tmp_path / "bench.json").read_text()
    json.loads(text)
    assert str(exported[1]) not in text
