"""What holds for all tests; and a board for those that need one.

The board is an OpenSSH server of the tests' own on loopback, with its own host key and one key that may log in; it needs no privileges.
"""

import os

# Before torch is imported: with spinning threads a test that takes a second on an idle machine takes minutes on a busy one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a worker for every core

import getpass
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kdpipe.targets.devices import agent
from kdpipe.targets.devices.ssh import Ssh, SshDevice

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
CLIENT = shutil.which("ssh")


@dataclass
class Board:
    """`connections`: the server's processes that serve a login."""

    folder: Path
    port: int
    server: subprocess.Popen

    @property
    def host(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    def connections(self) -> list[psutil.Process]:
        return psutil.Process(self.server.pid).children(recursive=True)

    def keepers(self) -> list[psutil.Process]:
        return [process for process in self.connections() if "hashlib" in " ".join(process.cmdline()) and "python" in process.name()]

    def settings(self, **changed: object) -> Ssh:
        own = {"kind": "ssh", "host": self.host, "port": self.port, "identity_file": self.folder / "id", "python": sys.executable, "folder": str(self.room)}
        return Ssh.model_validate({**own, "connect_seconds": 20, **changed})

    def until(self, true: Callable[[], object], what: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not in {seconds} s: {what}"
            time.sleep(0.02)

    @property
    def room(self) -> Path:
        """Where its keepers make their folders; empty when nothing was left behind."""
        return self.folder / "room"


def key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    return unused_port


@pytest.fixture(scope="session")
def board(tmp_path_factory) -> Iterator[Board]:
    if SSHD is None or CLIENT is None:
        pytest.skip("needs OpenSSH's server and client: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("board")
    for name in ("hostkey", "id", "stranger"):
        key(folder / name)
    (folder / "room").mkdir()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    port = unused_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/id.pub\nPidFile none\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\nMaxStartups 100\nSetEnv OMP_NUM_THREADS=1\n"
    )
    with (folder / "log").open("w") as log, subprocess.Popen([SSHD, "-f", str(folder / "sshd_config"), "-D", "-e"], stderr=log) as server:
        try:
            started = Board(folder, port, server)
            started.until(lambda: "Server listening" in (folder / "log").read_text(), "the server listens")
            yield started
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory) -> Iterator[list[str]]:
    """What stands for `sys.executable` in the command of a process that is not about its own start: see `warm_python.py`."""
    path = tmp_path_factory.mktemp("warm") / "socket"
    program = str(Path(__file__).with_name("warm_python.py"))
    with subprocess.Popen([sys.executable, program, "serve", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield [sys.executable, "-I", "-S", program, "run", str(path)]


@pytest.fixture(scope="session")
def kdpipe(warm_python) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`kdpipe(*arguments, folder=None)`: the command in that folder, to its end."""

    def run(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*warm_python, "-m", "kdpipe.pipeline", *arguments], capture_output=True, text=True, check=False, cwd=folder)

    return run


@pytest.fixture
def pi(board, tmp_path) -> SshDevice:
    """The board as a device of a project in which its key is pinned."""
    project = tmp_path / "my project"
    project.mkdir()
    device = board.settings().device("pi", project)
    device.pin(device.presented_key())
    return device


@pytest.fixture
def agent_of(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Every device runs this program in the agent's place."""

    def replace(source: str) -> None:
        path = tmp_path / "agent.py"
        path.write_text(source)
        monkeypatch.setattr(agent, "__file__", str(path))

    return replace
