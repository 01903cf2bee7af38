"""A robust project that builds in seconds, with every stage in it; built once, undisturbed, for all that compare with it."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

KDPIPE_TOML = """\
[project]
name = "small"
threads = 1
[task]
data = "digits"
[teacher]
network = "cnn-small"
objective = "trades"
epochs = 3
[teacher.attack]
epsilon = 0.1
steps = 2
[distill]
student = "resnet-8"
objective = "rslad"
epochs = 3
[distill.attack]
epsilon = 0.1
steps = 2
[prune]
speedup = 1.4
steps = 2
epochs = 2
[qat]
epochs = 2
[evaluate]
attacks = ["fgsm", "pgd-5"]
corruptions = ["gaussian-noise"]
corruption_samples = 100
attack_samples = 100
epsilon_curve = []
square_queries = 10
square_samples = 20
[bench]
seconds = 0.1
warmup_seconds = 0.1
batches = [1]
threads = [1]
[targets.cpu]
[targets.arm]
"""


@dataclass(frozen=True)
class Project:
    """A folder with a kdpipe.toml, and the command line in it."""

    folder: Path
    python: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        return [*self.python, "-m", "kdpipe.pipeline", *arguments, "--project", str(self.folder)]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False, env=environment())

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())

    def replace(self, old: str, new: str) -> "Project":
        path = self.folder / "kdpipe.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return self


def environment() -> dict[str, str]:
    return {**os.environ, "CI": "true"}


def made(folder: Path, python: list[str]) -> Project:
    folder.mkdir()
    (folder / "kdpipe.toml").write_text(KDPIPE_TOML)
    return Project(folder, tuple(python))


@pytest.fixture
def project(tmp_path: Path, warm_python: list[str]) -> Project:
    return made(tmp_path / "project", warm_python)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm_python: list[str]) -> Project:
    """The project, built in one go for both targets by a process of its own."""
    project = made(tmp_path_factory.mktemp("undisturbed") / "project", [sys.executable])
    result = project.run("build")
    assert result.returncode == 0, result.stderr[-3000:]
    return replace(project, python=tuple(warm_python))
