"""Both variants of an x86 file by the command line, from a project that was built for the default alone."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from kdpipe.targets.instruction_sets import probe

pytestmark = pytest.mark.slow

SECTION = '[targets.cpu]\nvariants = ["avx2", "vnni"]\n[targets.cpu.budgets]\nclean_drop = 90\n'


def test_variants_are_built_beside_what_is_there_and_ship_in_one_bundle(undisturbed, tmp_path, kdpipe):
    shutil.copytree(undisturbed.folder, tmp_path / "project")
    project = replace(undisturbed, folder=tmp_path / "project").replace("[targets.cpu]\n", SECTION)
    exact = bool({"vnni", "aarch64"} & probe())
    result = project.run("build", "--target", "cpu", "--json")
    assert result.returncode == (0 if exact else 4), result.stderr[-3000:]
    told = json.loads(result.stdout)
    states = {step["step"]: step["state"] for step in told["steps"]}
    assert {name for name, state in states.items() if state == "built"} == {name for name in states if name.endswith("@cpu-vnni")}
    assert {verdict["target"]: verdict["state"] for verdict in told["budgets"]} == {"cpu-avx2": "met", "cpu-vnni": "met" if exact else "not checkable"}
    assert {row["target"] for row in told["rows"]} == {None, "cpu-avx2", "cpu-vnni"}
    assert [each["target"] for each in told["expectations"]] == ["cpu-avx2", "cpu-vnni"]
    bundle = project.folder / "dist" / "small" / "cpu"
    assert told["bundles"] == {"cpu": str(bundle)}

    verified = json.loads(kdpipe("verify", str(bundle), "--json").stdout)
    assert verified["variants"] == ["vnni", "avx2"]
    which = json.loads(subprocess.run([sys.executable, str(bundle / "predict.py"), "--which", "--json"], capture_output=True, check=True).stdout)
    assert which["variant"] == ("vnni" if {"vnni", "avx2"} <= probe() else "avx2")
    judged = project.run("eval", str(bundle), "--attacks", "", "--corruptions", "", "--json")
    assert json.loads(judged.stdout)["subject"] == str(bundle / which["variant"])
    pair = [str(bundle / variant) for variant in ("avx2", "vnni")]
    compared = kdpipe("compare", *pair, "--margin", "100")
    assert compared.returncode == 0, compared.stderr
