"""One distribution holds every folder, and what it installs works without the source tree."""

import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("foundation", "pipeline", "stages", "targets", "tasks", "robustness")


def test_every_folder_with_code_is_a_package_of_the_distribution():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {"kdpipe." + ".".join(init.parent.relative_to(ROOT).parts) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py")}
    assert set(tools["packages"]) == on_disk
    assert set(tools["package-dir"]) == on_disk
    without_init = [path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not (path.parent / "__init__.py").exists()]
    assert without_init == []


def test_every_file_that_the_code_reads_is_in_the_distribution():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    covered = {path for folder in FOLDERS for pattern in [*patterns, "*.py"] for path in (ROOT / folder).rglob(pattern)}
    files = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert files - covered == set()


@pytest.mark.slow
def test_the_installed_wheel_lists_its_targets_and_helps_outside_the_source_tree(tmp_path):
    source = tmp_path / "source"  # a build leaves files beside its source
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheel", source], check=True
    )
    venv.create(tmp_path / "env", with_pip=False, system_site_packages=False)
    python = tmp_path / "env" / "bin" / "python"
    target = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    wheel = next((tmp_path / "wheel").glob("kdpipe-*.whl"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel], check=True)
    # The dependencies come from this environment, kdpipe itself only from the wheel.
    installed = subprocess.run(
        [sys.executable, "-c", "import typer, pathlib; print(pathlib.Path(typer.__file__).parents[1])"], capture_output=True, text=True, check=True
    )
    environment = {"PYTHONPATH": f"{target}:{installed.stdout.strip()}", "PATH": "/usr/bin:/bin"}

    def told(*arguments):
        return subprocess.run([python, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout

    assert told("-c", "import kdpipe.pipeline as p; print(p.__file__)").startswith(str(target))
    assert "build" in told("-m", "kdpipe.pipeline", "--help")
    listing = told("-m", "kdpipe.pipeline", "targets")
    assert all(name in listing for name in ("cpu", "arm", "gpu", "npu"))
