from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.pipeline.config import Config, assemble
from kdpipe.pipeline.toml_source import parse_toml

PROJECT = """\
[project]
name = "digits"
[task]
data = "digits"
[devices.here]
kind = "local"
[targets.cpu]
variants = ["avx2", "vnni"]
accuracy_on = ["here"]
[targets.cpu.budgets]
size_kb = 100
"""
VARIANTS = 'variants = ["avx2", "vnni"]'


def _config(tiny: ModuleType, text: str = PROJECT, *, targets: tuple[str, ...] = (), project: Path = Path("/nowhere")) -> Config:
    return assemble(project, parse_toml(text, "kdpipe.toml"), tiny.STAGES, targets)


def _one(tiny: ModuleType, text: str, **arguments: Any) -> Problem:
    with pytest.raises(ConfigError) as caught:
        _config(tiny, text, **arguments)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    return problem


def test_variants_become_a_target_each_that_share_a_bundle_and_all_other_settings(tiny: ModuleType) -> None:
    config = _config(tiny)
    assert list(config.targets) == ["cpu-avx2", "cpu-vnni"]
    avx2, vnni = config.targets.values()
    assert [target.profile.chosen_scheme.weight_bits for target in (avx2, vnni)] == [7, 8]
    assert {(target.bundle, target.budgets.size_kb, target.accuracy_on) for target in (avx2, vnni)} == {("cpu", 100, ("here",))}
    assert config.resolved["targets"]["cpu-vnni"]["bundle"] == "cpu"
    assert config.resolved["targets"]["cpu-vnni"]["variant"] == "vnni"


def test_the_default_under_its_own_name_is_the_same_target_to_a_fingerprint(tiny: ModuleType) -> None:
    alone = _config(tiny, PROJECT.replace(VARIANTS, "")).targets["cpu"]
    named = _config(tiny, PROJECT.replace(VARIANTS, 'variant = "avx2"')).targets["cpu"]
    several = _config(tiny).targets["cpu-avx2"]
    assert alone.profile.model_dump() == named.profile.model_dump() == several.profile.model_dump()
    assert "bundle" not in alone.resolved


def test_a_wanted_section_stands_for_all_its_variants_and_one_of_them_has_a_bundle_of_its_own(tiny: ModuleType) -> None:
    assert list(_config(tiny, targets=("cpu",)).targets) == ["cpu-avx2", "cpu-vnni"]
    alone = _config(tiny, targets=("cpu-vnni",)).targets
    assert [(target.name, target.bundle, target.budgets.size_kb) for target in alone.values()] == [("cpu-vnni", None, 100)]


def test_a_variant_that_ships_needs_no_section_and_one_called_so_no_profile(tiny: ModuleType) -> None:
    text = PROJECT.replace("[targets.cpu]\n" + VARIANTS, "[targets.cpu-vnni]").replace("targets.cpu.budgets", "targets.cpu-vnni.budgets")
    for found in (_config(tiny, PROJECT.split("[targets", 1)[0], targets=("cpu-vnni",)), _config(tiny, text)):
        (target,) = found.targets.values()
        assert (target.name, target.profile.name, target.profile.chosen_scheme.weight_bits) == ("cpu-vnni", "cpu", 8)


def test_a_profile_of_ones_own_may_have_variants(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('extends = "cpu"\ntitle = "our fleet"\n')
    config = _config(tiny, PROJECT.replace(VARIANTS, VARIANTS + '\nprofile = "fleet.toml"'), project=tmp_path)
    assert [target.profile.title for target in config.targets.values()] == ["our fleet", "our fleet"]


def test_auto_is_the_default_until_the_device_was_asked(tiny: ModuleType) -> None:
    target = _config(tiny, PROJECT.replace(VARIANTS, 'variant = "auto"\ndevice = "here"')).targets["cpu"]
    assert (target.auto, target.profile.variant_name, target.variant) == (True, "avx2", None)


@pytest.mark.parametrize(
    ("text", "message", "line", "do"),
    [
        (VARIANTS + '\nvariant = "vnni"', "both variant and variants are given", 8, "keep one"),
        ('variants = ["avx2", "vni"]', "unknown variant 'vni' of the profile 'cpu'", 8, "did you mean 'vnni'? its variants: avx2, vnni"),
        ('variants = ["avx2", "auto"]', "unknown variant 'auto' of the profile 'cpu'", 8, "its variants: avx2, vnni"),
        ('variants = ["avx2", "vnni", "vnni"]', "variants = ['avx2', 'vnni', 'vnni'] names one twice", 8, "name each once"),
        ('variants = ["vnni"]', "variants lacks 'avx2', the one that is right on every machine", 8, "add 'avx2'"),
        ("variants = []", "variants = []: at least 1 is needed", 8, "several variants"),
        ('variant = "vni"', "unknown variant 'vni' of the profile 'cpu'", 8, "did you mean 'vnni'? its variants: avx2, vnni"),
        ('device = "host"', "unknown device 'host'", 8, "this host needs no name: leave it out"),
        ('variants = "vnni"', 'variants = "vnni": a list [ … ] is needed', 8, "several variants"),
        ('variant = "auto"', "variant = 'auto' needs a device to ask: the machine that builds does not decide", 8, "name a device, or write variants"),
        ('variant = "auto"\nprofile = "gpu"\ndevice = "here"', "variant = 'auto', and the profile 'gpu' has no variants", 8, "leave variant out"),
        (VARIANTS + "\n[targets.cpu-vnni]", "[targets.cpu-vnni] is called as a variant of [targets.cpu]", 9, "call it otherwise"),
    ],
    ids=[
        "both",
        "misspelt",
        "auto among them",
        "twice",
        "no default",
        "empty",
        "one misspelt",
        "this host",
        "no list",
        "no device",
        "no variants",
        "same name",
    ],
)
def test_what_is_wrong_with_variants_is_told_with_its_line(tiny: ModuleType, text: str, message: str, line: int, do: str) -> None:
    problem = _one(tiny, PROJECT.replace(VARIANTS + '\naccuracy_on = ["here"]', text))
    assert problem.message.startswith(message)
    assert problem.at == f"kdpipe.toml:{line}"
    assert (problem.do or "").startswith(do) or do in (problem.do or "")


def test_a_variant_whose_name_is_no_folder_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    own = 'extends = "cpu"\n[variants."../x"]\ntitle = "t"\nneeds = ["vnni"]\nexact_on = ["vnni"]\n[variants."../x".scheme]\n'
    (tmp_path / "odd.toml").write_text(own)
    problem = _one(tiny, PROJECT.replace(VARIANTS, 'profile = "odd.toml"\nvariants = ["avx2", "../x"]'), project=tmp_path)
    assert problem.message == "a target cannot be called 'cpu-../x'"
    assert problem.at == "kdpipe.toml:9"
    assert "it becomes a folder in dist/" in (problem.do or "")


def test_an_unknown_target_is_answered_with_variants_too(tiny: ModuleType) -> None:
    problem = _one(tiny, PROJECT, targets=("cpu-vni",))
    assert problem.message == "unknown target 'cpu-vni'"
    assert problem.at == "--target cpu-vni"
    assert (problem.do or "").startswith("did you mean 'cpu-vnni'? targets: cpu, cpu-avx2, cpu-vnni, ")


def test_a_scheme_of_a_target_takes_the_place_of_the_profiles(tiny: ModuleType) -> None:
    text = PROJECT.replace(VARIANTS, 'scheme = "weights-only"')
    scheme = _config(tiny, text).targets["cpu"].profile.chosen_scheme
    assert (scheme.kind, scheme.weight_bits) == ("weights-only", 8)
    plain = _config(tiny, PROJECT.replace(VARIANTS, "")).targets["cpu"].profile
    named = _config(tiny, PROJECT.replace(VARIANTS, 'scheme = "static-int8"')).targets["cpu"].profile
    assert named.digest == plain.digest


def test_variants_and_another_scheme_contradict_each_other(tiny: ModuleType) -> None:
    problem = _one(tiny, PROJECT.replace(VARIANTS, 'variant = "vnni"\nscheme = "float16"'))
    assert problem.message == "variant does not go with scheme = 'float16'"
    assert problem.at == "kdpipe.toml:8"
    assert problem.do == "keep one of the two: variants are schemes of static int8"


def test_an_unknown_scheme_is_answered_with_those_that_there_are(tiny: ModuleType) -> None:
    problem = _one(tiny, PROJECT.replace(VARIANTS, 'scheme = "int4"'))
    assert "int4" in problem.message
    assert "float16" in problem.do
    assert problem.at == "kdpipe.toml:8"
