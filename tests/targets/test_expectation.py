import pytest

from kdpipe.targets.expectation import Chip, Cost, Expectation, expected, measured_points
from kdpipe.targets.profile import load_profile

AVX2 = frozenset({"x86-64", "avx2"})
VNNI = AVX2 | {"vnni", "avx512-vnni"}
A72 = frozenset({"aarch64", "asimd"})
A76 = A72 | {"asimdhp", "asimddp"}
LARGE, MIDDLE, SMALL = Cost(200_000_000, False), Cost(9_345_920, False), Cost(500_000, False)


def expect(profile: str, sets: frozenset[str] | None, cost: Cost | None = LARGE, **options: object) -> Expectation:
    chip = Chip("this host" if sets is not None else "its class of chips", sets)
    return expected(profile, load_profile(profile, at="test", **options), chip, cost)


def test_a_large_network_on_a_cpu_with_vnni_gains_as_the_largest_that_was_measured():
    found = expect("cpu", VNNI)
    largest = sorted((point for point in measured_points() if not point.depthwise), key=lambda point: point.macs)[-1]
    assert found.outlook == "faster"
    assert found.ratios == {"onnxruntime": largest.onnxruntime, "openvino": largest.openvino}
    assert found.told.startswith("cpu on this host: int8 is expected to be faster than float (onnxruntime about 0.3")
    assert "this host has an int8 dot product (vnni)" in found.reasons


def test_a_measured_size_gives_its_own_figure_and_one_between_lies_between():
    point = next(point for point in measured_points() if point.macs == MIDDLE.macs)
    assert expect("cpu", VNNI, MIDDLE).ratios == {"onnxruntime": point.onnxruntime, "openvino": point.openvino}
    between = expect("cpu", VNNI, Cost(20_000_000, False)).ratios["onnxruntime"]
    assert min(p.onnxruntime for p in measured_points()) < between < point.onnxruntime


def test_a_small_network_is_not_faster_and_that_is_said_before_it_is_trained():
    found = expect("cpu", VNNI, SMALL)
    assert found.outlook == "not faster"
    assert found.reasons[-1].startswith("the network is small: 0.5 M multiply-accumulates in dense convolutions; most of a single inference")


def test_without_an_int8_dot_product_an_x86_cpu_gains_less_and_never_the_smallest_more_than_nothing():
    for cost in (LARGE, MIDDLE, SMALL):
        with_vnni, without = expect("cpu", VNNI, cost), expect("cpu", AVX2, cost)
        assert without.outlook != "faster"
        assert all(ratio >= with_vnni.ratios[runtime] for runtime, ratio in without.ratios.items())
    assert "this host has no int8 dot product (vnni)" in expect("cpu", AVX2).reasons[0]


@pytest.mark.parametrize(
    ("profile", "sets", "outlook", "reason"),
    [
        ("arm-a72", None, "not faster", "chips of this class have no int8 dot product"),
        ("arm-a72", A72, "not faster", "chips of this class have no int8 dot product"),
        ("arm", A72, "not faster", "this host has no int8 dot product (asimddp)"),
        ("arm", A76, "faster", "this host has an int8 dot product (asimddp)"),
        ("arm-a76", None, "faster", "its class of chips has an int8 dot product (asimddp)"),
        ("arm", None, "not known", "no device is named: with asimddp it would be, without it would not"),
        ("arm", VNNI, "not known", "the target is aarch64, this host is not"),
        ("gpu", None, "not known", "TensorRT decides, and it is not here to be asked"),
        ("npu", VNNI, "not known", "NPU decides, and it is not here to be asked"),
    ],
    ids=["a72 class", "a72", "a72 as arm", "a76 as arm", "a76 class", "arm, no device", "arm on x86", "gpu", "npu"],
)
def test_the_chip_decides_first(profile: str, sets: frozenset[str] | None, outlook: str, reason: str):
    found = expect(profile, sets)
    assert found.outlook == outlook
    assert any(reason in each for each in found.reasons)
    assert found.ratios == {}  # of chips that were never here no figure is claimed


def test_a_small_network_gains_nothing_on_arm_either_and_the_source_is_named():
    found = expect("arm-a76", A76, SMALL)
    assert found.outlook == "not faster"
    assert found.reasons[-1].endswith("most of a single inference is then overhead (measured on x86)")


@pytest.mark.parametrize("scheme", ["weights-only", "float16"])
def test_a_scheme_that_computes_in_float_makes_nothing_faster(scheme: str):
    found = expect("cpu", VNNI, scheme=scheme)
    assert (found.outlook, found.ratios) == ("not faster", {})
    assert found.reasons[0] == "the scheme makes the file smaller: its layers compute in float"


def test_an_emulated_device_is_expected_of_its_chip_and_gives_no_figure():
    chip = Chip("device hsw", AVX2, no_latency="emulated")
    found = expected("cpu", load_profile("cpu", at="test"), chip, LARGE)
    assert (found.outlook, found.ratios, found.reasons[-1]) == ("a little faster", {}, "latency is not measured there")


def test_a_small_network_is_small_on_an_emulated_device_too():
    found = expected("cpu", load_profile("cpu", at="test"), Chip("device hsw", AVX2, no_latency="emulated"), SMALL)
    assert (found.outlook, found.ratios) == ("not faster", {})
    assert found.reasons[1].startswith("the network is small: ")


def test_where_the_network_is_not_known_the_chip_alone_speaks():
    assert expect("cpu", VNNI, None).outlook == "faster"
    assert expect("cpu", VNNI, None).ratios == {}
