"""The recorded session of docs/ssh-session.md: `kdpipe build` with a board over SSH, from an empty folder to the bundle.

    python benchmarks/ssh_session.py              records it anew (needs openssh-server, and for the ARM board qemu-user-static)
    python benchmarks/ssh_session.py --page       writes the page from the recording that is there

An OpenSSH server of this script's own, on loopback, is the board, twice: as `arm`, whose Python is an aarch64 one that qemu
runs as a Cortex-A76 (so it gives accuracy, and kdpipe must notice that it may not give latency), and as `box`, whose Python is this
host's (so it gives both). Every command is really run in a terminal; nothing is edited afterwards.
"""

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recorded_terminal import Recording, screen

from kdpipe.targets.devices.userland import PYTHON, SITE, cache_folder

ROOT = Path(__file__).parents[1]
CAST = ROOT / "docs" / "sessions" / "ssh.cast"
PAGE = ROOT / "docs" / "ssh-session.md"
PROJECT = "digits"
_YES = {"[y/N]": "y"}
_EMULATED = "cortex-a76"
_EDIT = r"""s/^.targets.arm.$/&\ndevice = "arm"/; s/^.targets.cpu.$/&\ndevice = "box"/; s/^.budgets..*$/&\ndevice_spread = 2.0/"""

_HEAD = """\
# A build with a board over SSH, recorded

`python benchmarks/ssh_session.py` ran these commands in a terminal and wrote this page; nothing was edited. `asciinema play docs/sessions/ssh.cast`
plays it as it went, progress bars included.

There is no board in the machine that recorded it: an OpenSSH server on loopback stands for two. The Python of `arm` is an aarch64
one, emulated as a Cortex-A76: the real ARM build of ONNX Runtime computes there. kdpipe is not told so: it notices that what runs there
is emulated, takes the accuracy, and refuses the latency. The Python of `box` is the machine's own: it gives latency as well.
A real board takes the same commands.

```console
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only write the page from the recording")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kdpipe-session", help="where to work; it must not be there yet")
    asked = parser.parse_args()
    if not asked.page:
        asked.folder.mkdir()
        record(asked.folder)
    PAGE.write_text(page(CAST), encoding="utf-8")
    return 0


def page(cast: Path) -> str:
    """The page's text."""
    return f"{_HEAD}{screen(cast)}```\n"


def record(folder: Path) -> None:
    """Run the session in `folder` and write the recording; SystemExit where a command did not end as it should."""
    project = folder / PROJECT
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    with board(folder) as port:
        arm, box = arm_python(folder / "arm-python"), box_python(folder / "box-python")
        login = f"{getpass.getuser()}@127.0.0.1 --port {port} --identity-file ../key"
        recording = Recording(environment)
        steps = [
            (f"kdpipe init {PROJECT} --data digits", folder, {}),
            (f"kdpipe devices add arm --host {login} --python {arm}", project, _YES),
            (f"kdpipe devices add box --host {login} --python {box}", project, _YES),
            (f"sed -i '{_EDIT}' kdpipe.toml", project, {}),
            ("sed -n '/^.targets.cpu/,$p' kdpipe.toml", project, {}),
            ("kdpipe devices doctor arm", project, {}),
            ("kdpipe build --target arm", project, {}),
            ("kdpipe build --target cpu", project, {}),
            ("kdpipe bench dist/digits/cpu --device box", project, {}),
            ("kdpipe devices ls", project, {}),
        ]
        for command, where, answers in steps:
            code = recording.run(command, where, answers)
            if code != 0:
                recording.write(folder / "failed.cast", "failed")
                raise SystemExit(f"{command!r} ended with {code}:\n{screen(folder / 'failed.cast')}")
    recording.write(CAST, "kdpipe build with a board over SSH")


@contextmanager
def board(folder: Path) -> Iterator[int]:
    """The port of an SSH server on loopback that lets `folder/key` in."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None:
        raise SystemExit("needs OpenSSH's server: apt-get install openssh-server")
    for name in ("key", "hostkey"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/hostkey\nAuthorizedKeysFile {folder}/key.pub\nPidFile none\n"
        "StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\nSetEnv OMP_NUM_THREADS=1\n"
    )
    with (folder / "log").open("w") as log, subprocess.Popen([sshd, "-f", str(folder / "sshd_config"), "-D", "-e"], stderr=log) as server:
        try:
            for _ in range(200):
                if "Server listening" in (folder / "log").read_text():
                    break
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()


def arm_python(path: Path) -> Path:
    """An executable that is an aarch64 Python, emulated; SystemExit where its userland was not prepared."""
    userland, prefix = cache_folder("aarch64"), cache_folder("prefixes") / f"aarch64-{_EMULATED}"
    if shutil.which("qemu-aarch64-static") is None or not (userland / PYTHON).exists() or not prefix.is_dir():
        raise SystemExit("needs an emulated ARM Python: apt-get install qemu-user-static, then kdpipe devices add a76 --cpu cortex-a76 in any project")
    settings = f"-cpu {_EMULATED} -L {prefix} -E PYTHONPATH={userland / SITE}"
    return _program(path, f'qemu-aarch64-static -0 "$0" {settings} {prefix / PYTHON}')


def box_python(path: Path) -> Path:
    """An executable that is the Python of this environment, wherever that lies."""
    return _program(path, sys.executable)


def _program(path: Path, command: str) -> Path:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    sys.exit(main())
