import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.targets.profile import load_profile, profile_names

AVX2 = frozenset({"x86-64", "avx2"})
VNNI = AVX2 | {"vnni"}
ARM = frozenset({"aarch64", "asimd"})


@pytest.fixture
def own(tmp_path):
    def write(text: str):
        path = tmp_path / "board.toml"
        path.write_text(text)
        return path

    return write


def problems(path, **options):
    with pytest.raises(ConfigError) as caught:
        load_profile(path, at="kdpipe.toml:3", **options)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_the_profiles_that_ship():
    assert profile_names() == ["arm", "arm-a72", "arm-a76", "cpu", "gpu", "npu"]


def test_the_default_cpu_scheme_cannot_saturate_sixteen_bits():
    scheme = load_profile("cpu", at="test").chosen_scheme
    assert (scheme.activation_signed, scheme.weight_bits, scheme.weight_granularity) == (False, 7, "per-channel")
    assert 2 * (2**scheme.activation_bits - 1) * (2 ** (scheme.weight_bits - 1) - 1) < 2**15


@pytest.mark.parametrize(("name", "symmetric"), [("arm", False), ("arm-a72", False), ("arm-a76", False), ("gpu", True)])
def test_arm_and_gpu_files_are_signed_per_channel_and_static_and_those_of_gpu_without_zero_points(name, symmetric):
    profile = load_profile(name, at="test")
    scheme = profile.chosen_scheme
    assert (scheme.activation_signed, scheme.activation_symmetric, scheme.weight_granularity) == (True, symmetric, "per-channel")
    assert (profile.batch, profile.static_batch) == ("static", 1)


def test_the_npu_file_is_static_and_travels_as_ir_compiled_on_the_device():
    profile = load_profile("npu", at="test")
    assert (profile.batch, profile.formats, profile.compile_on) == ("static", ("onnx", "openvino-ir"), "device")


def test_every_shipped_profile_takes_its_own_opset_and_that_of_per_channel_quantization(shipped):
    low, high = shipped.opset_range
    assert 13 <= low <= shipped.opset <= high


def test_the_vnni_variant_has_full_weights_and_another_digest():
    default, vnni = (load_profile("cpu", at="test", variant=variant) for variant in (None, "vnni"))
    assert (default.chosen_scheme.weight_bits, vnni.chosen_scheme.weight_bits) == (7, 8)
    assert default.digest != vnni.digest


@pytest.mark.parametrize(
    ("name", "variant", "sets", "exact"),
    [
        ("cpu", None, AVX2, True),
        ("cpu", "vnni", AVX2, False),
        ("cpu", "vnni", VNNI, True),
        ("arm", None, AVX2, False),
        ("arm", None, VNNI, True),
        ("arm", None, ARM, True),
    ],
    ids=["cpu on avx2", "vnni on avx2", "vnni on vnni", "arm on avx2", "arm on vnni", "arm on arm"],
)
def test_a_profile_says_where_its_file_is_exact(name, variant, sets, exact):
    assert load_profile(name, at="test", variant=variant).exact_on(sets) is exact


@pytest.mark.parametrize(
    ("name", "sets", "reason"),
    [
        ("cpu", AVX2, None),
        ("cpu", frozenset({"x86-64"}), "not measured: this host lacks avx2"),
        ("arm", ARM, None),
        ("arm", AVX2, "not measured: no device (the target is aarch64, this host is not)"),
        ("gpu", VNNI, "not measured: no device (the target computes on TensorRT, this host has no onnxruntime-tensorrt)"),
        ("npu", VNNI, "not measured: no device (the target computes on NPU, this host has no openvino-npu)"),
    ],
    ids=["cpu on avx2", "cpu on old x86", "arm on arm", "arm on x86", "gpu", "npu"],
)
def test_a_profile_says_why_a_host_cannot_measure_it(name, sets, reason):
    assert load_profile(name, at="test").why_not_measurable(sets) == reason


def test_an_extended_profile_keeps_what_it_does_not_name(own):
    path = own('extends = "arm"\ntitle = "my board"\n[scheme]\nweight_bits = 6\n[bench]\nseconds = 12.0\n')
    profile, arm = load_profile(path, at="test"), load_profile("arm", at="test")
    assert (profile.name, profile.title, profile.scheme.weight_bits, profile.bench.seconds) == ("board", "my board", 6, 12.0)
    assert (profile.scheme.activation_signed, profile.runtimes, profile.bench.threads) == (True, arm.runtimes, arm.bench.threads)


def test_profiles_extend_files_beside_them(own, tmp_path):
    (tmp_path / "base.toml").write_text('extends = "arm"\nstatic_batch = 2\n')
    assert load_profile(own('extends = "base.toml"\nopset = 17\n'), at="test").static_batch == 2


def test_the_digest_follows_the_content_and_not_the_place(own, tmp_path):
    first = load_profile(own('extends = "arm"\n'), at="test")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "board.toml").write_text('# a comment\nextends = "arm"\n')
    assert load_profile(other / "board.toml", at="test").digest == first.digest
    assert load_profile(own('extends = "arm"\nopset = 17\n'), at="test").digest != first.digest


def test_a_misspelt_key_is_answered_with_the_nearest_one_and_its_line(own):
    path = own('extends = "arm"\n[scheme]\nweight_bitts = 7\n')
    (problem,) = problems(path)
    assert problem.message == "unknown key 'weight_bitts' in [scheme]"
    assert problem.at == f"{path}:3"
    assert problem.do == "did you mean 'weight_bits'?"


def test_a_misspelt_key_at_the_top_is_answered_too(own):
    path = own('extends = "arm"\nopsett = 18\n')
    (problem,) = problems(path)
    assert (problem.message, problem.at, problem.do) == ("unknown key 'opsett' in the profile", f"{path}:2", "did you mean 'opset'?")


FAULTY = """extends = "arm"
opset = 9
[bench]
seconds = -1.0
[instruction_sets]
needs = ["asimdq"]
[[runtimes]]
name = "onnxruntime"
versions = "1.22 or so"
"""


def test_all_problems_of_a_profile_come_at_once(own):
    path = own(FAULTY)
    found = problems(path)
    assert [problem.at for problem in found] == [f"{path}:{line}" for line in (9, 6, 2, 4)]
    said = "\n".join(map(str, found))
    assert "versions = '1.22 or so': not a version range" in said
    assert "needs[0] = 'asimdq': unknown instruction set, did you mean 'asimd" in said
    assert "opset = 9: Input should be greater than or equal to 13" in said
    assert "seconds = -1.0: Input should be greater than 0" in said


def test_a_missing_key_is_named(own):
    path = own('title = "bare"\ndevice_class = "arm-cpu"\n[scheme]\n')
    (problem,) = problems(path)
    assert (problem.message, problem.at) == ("missing key 'runtimes' in the profile", str(path))
    assert problem.do is not None
    assert "extends" in problem.do


def test_an_unknown_profile_is_answered_with_the_nearest_name():
    (problem,) = problems("amr")
    assert (problem.message, problem.at) == ("unknown target profile 'amr'", "kdpipe.toml:3")
    assert problem.do == "did you mean 'arm'? profiles that ship: arm, arm-a72, arm-a76, cpu, gpu, npu; your own: a path that ends in .toml"


def test_a_missing_profile_file_is_named(tmp_path):
    (problem,) = problems(tmp_path / "nowhere.toml")
    assert "nowhere.toml" in problem.message
    assert (problem.at, problem.do) == ("kdpipe.toml:3", "check the path; it is relative to the file that names it")


def test_a_profile_that_is_not_toml_is_named_with_the_parser_s_words(own):
    path = own("opset = = 18\n")
    (problem,) = problems(path)
    assert problem.message.startswith("profile is not valid TOML:")
    assert "line 1" in problem.message
    assert (problem.at, problem.do) == (str(path), "mend the line that the message names")


def test_profiles_that_extend_each_other_are_refused(own, tmp_path):
    (tmp_path / "other.toml").write_text('extends = "board.toml"\n')
    (problem,) = problems(own('extends = "other.toml"\n'))
    assert problem.message == "profiles extend each other: board.toml → other.toml → board.toml"
    assert problem.at == str(tmp_path / "other.toml")
    assert problem.do == "remove one of the 'extends'"


def test_extends_that_is_no_name_is_refused(own):
    path = own("extends = 3\n")
    (problem,) = problems(path)
    assert (problem.message, problem.at, problem.do) == ("extends = 3 is not a name", str(path), 'write extends = "arm" or a path that ends in .toml')


def test_an_unknown_variant_is_refused_with_the_known_ones(own):
    (problem,) = problems("cpu", variant="vnnni")
    assert (problem.message, problem.at) == ("unknown variant 'vnnni' of the profile 'cpu'", "variant")
    assert problem.do == "did you mean 'vnni'? its variants: avx2, vnni"


def test_a_value_of_none_of_a_key_s_kinds_is_one_problem_at_its_line(own):
    path = own('extends = "arm"\n[bench]\nthreads = [0, "lots"]\n')
    first, second = problems(path)
    assert first.message == "threads[0] = 0: Input should be greater than or equal to 1, or 'all'"
    assert second.message.startswith("threads[1] = 'lots': Input should be a valid integer")
    assert (first.at, second.at) == (f"{path}:3", f"{path}:3")


@pytest.mark.parametrize("text", ["x = " + "[" * 9000 + "]" * 9000, "x = " + "9" * 5000], ids=["brackets", "digits"])
def test_what_tomllib_itself_chokes_on_is_the_users_mistake(own, text):
    path = own(text)
    (problem,) = problems(path)
    assert problem.message.startswith("profile is not")
    assert problem.at == str(path)
    assert problem.do


def test_a_file_too_large_for_a_profile_is_not_read(own):
    path = own("")
    with path.open("wb") as file:
        file.truncate(100_000_000)
    (problem,) = problems(path)
    assert (problem.message, problem.at) == ("the file has 100.0 MB, a profile has at most 1", str(path))
    assert problem.do == "check that it is a profile"


def test_a_runtime_of_ones_own_alone_gives_no_latency_and_one_beside_it_does(own):
    alone = load_profile(own('extends = "cpu"\n[[runtimes]]\nname = "mine:runtime"\n'), at="test")
    assert alone.why_not_measurable(AVX2) == (
        "not measured: mine:runtime is your own, and what times files (the agent, one file without kdpipe) has the runtimes that ship"
    )
    both = load_profile(own('extends = "cpu"\n[[runtimes]]\nname = "mine:runtime"\n[[runtimes]]\nname = "onnxruntime"\n'), at="test")
    assert both.why_not_measurable(AVX2) is None
    fitted, absent = both.fitted_to({"onnxruntime": "1.32.0"}, where="this host")
    assert [need.name for need in fitted.runtimes_on_device] == ["onnxruntime"]
    assert absent == ("not measured in mine:runtime: not available on this host",)


def test_both_classes_of_arm_cpus_take_the_same_file_and_differ_in_what_they_promise():
    arm, a72, a76 = (load_profile(name, at="test") for name in ("arm", "arm-a72", "arm-a76"))
    assert arm.chosen_scheme == a72.chosen_scheme == a76.chosen_scheme
    assert (a72.instruction_sets.fast_on, a76.instruction_sets.fast_on) == ((), ("asimddp", "i8mm"))
    assert a76.why_not_measurable(ARM, where="device pi4") == "not measured: device pi4 lacks asimddp"
    assert a72.why_not_measurable(ARM, where="device pi4") is None


def test_an_optional_runtime_is_left_out_where_a_device_lacks_it_and_that_is_said():
    profile = load_profile("arm-a76", at="test")
    fitted, absent = profile.fitted_to({"onnxruntime": "1.32.0"}, where="device pi")
    assert [need.name for need in fitted.runtimes_on_device] == ["onnxruntime"]
    assert absent == ("not measured in onnxruntime-xnnpack: not available on device pi",)
    everything, nothing = profile.fitted_to({"onnxruntime": "1.32.0", "onnxruntime-xnnpack": "1.32.0"}, where="device pi")
    assert (everything, nothing) == (profile, ())


def test_a_board_without_one_of_a_cpu_s_runtimes_measures_in_the_other_and_one_without_any_is_asked_for_all():
    profile = load_profile("cpu", at="test")
    fitted, absent = profile.fitted_to({"onnxruntime": "1.32.0"}, where="device pi")
    assert [need.name for need in fitted.runtimes_on_device] == ["onnxruntime"]
    assert absent == ("not measured in openvino: not available on device pi",)
    assert profile.fitted_to({"python": "3.11.2"}, where="device pi") == (profile, ())
    gpu = load_profile("gpu", at="test")
    assert gpu.fitted_to({"onnxruntime": "1.32.0"}, where="device pi") == (gpu, ())


def test_what_proves_the_file_is_not_optional(own):
    (problem,) = problems(own('extends = "arm"\n[[runtimes]]\nname = "onnxruntime"\noptional = true\n'))
    assert "optional is for further [[device_runtimes]]" in problem.message


def test_the_default_scheme_of_cpu_goes_by_its_own_name_too():
    default, named = load_profile("cpu", at="test"), load_profile("cpu", at="test", variant="avx2")
    assert default.digest == named.digest
    assert (default.variant_names, named.variant_name) == (("avx2", "vnni"), "avx2")
    assert default.of_variant("vnni") == load_profile("cpu", at="test", variant="vnni")
    assert default.of_variant("vnni").of_variant("avx2") == default


def test_a_scheme_cannot_be_called_as_a_variant(own):
    (problem,) = problems(own('extends = "cpu"\nscheme_name = "vnni"\n'))
    assert "scheme_name = 'vnni' is the name of a variant" in problem.message


def test_a_machine_that_saturates_is_told_what_would_not():
    vnni = load_profile("cpu", at="test", variant="vnni")
    told = "measured exactly only where the CPU has vnni or aarch64: device old has not, its sums saturate in 16 bits"
    assert vnni.why_not_exact(AVX2, where="device old") == told
    assert vnni.why_not_exact(VNNI) is None
