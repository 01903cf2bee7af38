"""Boards as they are found: a user without a home and with a bare environment, an old Python, a disk that is really full.

Another user is made without touching the machine's own: the server runs in a mount namespace in which /etc/passwd has one more line.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.device import require_runtime_there
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile, PredictRequest, StartRequest, Windows
from kdpipe.targets.devices.ssh import Ssh
from kdpipe.targets.devices.userland import cache_folder
from kdpipe.targets.runtimes.runtime import open_session

GUEST, GUEST_ID = "kdpipe-guest", 64987
OLD_PYTHON = Path(os.environ.get("KDPIPE_OLD_PYTHON") or cache_folder("python3.8") / "bin" / "python")
needs_old_python = pytest.mark.skipif(not OLD_PYTHON.exists(), reason=f"needs a Python 3.8 with numpy and onnxruntime as {OLD_PYTHON}, or KDPIPE_OLD_PYTHON")

NAMESPACE = """\
set -e
mount --make-rprivate /
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/shadow /etc/shadow
mount --bind {base} {folder}/python
mount --bind {site} {folder}/site
exec {sshd} -f {folder}/sshd_config -D -e
"""


def may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


needs_root = pytest.mark.skipif(not may_mount(), reason="needs root and mounts of its own: another user, and a small disk")


@pytest.fixture(scope="module")
def guest_board(board, free_port) -> Iterator[tuple[Ssh, Path]]:
    """The settings of a login as another user, and the folder of which it may read everything and write `room`."""
    with tempfile.TemporaryDirectory(prefix="kdpipe-guest-") as name:
        folder = Path(name)  # not pytest's: nobody else may enter that
        folder.chmod(0o755)
        for own in ("python", "site", "room"):
            (folder / own).mkdir()
        (folder / "room").chmod(0o1777)
        shutil.copy(board.folder / "id.pub", folder / "authorized")
        (folder / "authorized").chmod(0o644)
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + f"{GUEST}:x:{GUEST_ID}:65534::/nonexistent:/bin/sh\n")
        (folder / "shadow").write_text(Path("/etc/shadow").read_text() + f"{GUEST}:*:19000::::::\n")
        (folder / "shadow").chmod(0o600)
        interpreter = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "kd-python").write_text(f'#!/bin/sh\nPYTHONPATH={folder}/site exec {folder}/python/bin/{interpreter} "$@"\n')
        (folder / "kd-python").chmod(0o755)
        port = free_port()
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {board.folder}/hostkey\nAuthorizedKeysFile {folder}/authorized\nPidFile none\nStrictModes no\n"
            f"PasswordAuthentication no\nUsePAM no\nAllowUsers {GUEST}\nPermitUserEnvironment no\nAllowTcpForwarding no\nPermitTTY no\nPrintMotd yes\n"
        )
        script = NAMESPACE.format(folder=folder, base=sys.base_prefix, site=Path(np.__file__).parents[1], sshd=shutil.which("sshd") or "/usr/sbin/sshd")
        with (folder / "log").open("w") as log, subprocess.Popen(["unshare", "-m", "sh", "-c", script], stderr=log) as server:
            try:
                board.until(lambda: "Server listening" in (folder / "log").read_text() or server.poll() is not None, "the server listens")
                assert server.poll() is None, (folder / "log").read_text()
                settings = {"host": f"{GUEST}@127.0.0.1", "port": port, "python": str(folder / "kd-python"), "folder": str(folder / "room")}
                yield board.settings(**settings), folder
            finally:
                server.terminate()


@pytest.fixture
def guest(guest_board, tmp_path):
    device = guest_board[0].device("guest", tmp_path)
    device.pin(device.presented_key())
    return device


@needs_root
def test_another_user_without_a_home_measures_and_leaves_nothing(guest, guest_board, board, files, samples, tmp_path):
    with pytest.raises(KeyError):
        pwd.getpwnam(GUEST)  # the machine itself does not know the user
    np.save(tmp_path / "inputs.npy", samples)
    start = StartRequest(runtime="onnxruntime", model=files / "u8-one.onnx", threads=1, batch=1, inputs=tmp_path / "inputs.npy")
    room = guest_board[1] / "room"
    with guest.connected():
        (folder,) = room.iterdir()
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (GUEST_ID, 0o700)
        request = PredictRequest(runtime="onnxruntime", model=files / "u8-one.onnx", threads=1)
        (there,) = guest.predict(request, [samples], limit_seconds=60)
        (started,) = guest.ask("start", start, limit_seconds=60)
    with open_session("onnxruntime", files / "u8-one.onnx") as session:
        assert np.array_equal(there, session(samples))
    assert started.load_ns > 0
    board.until(lambda: not list(room.iterdir()), "the folder is gone")


@needs_root
def test_the_lock_is_the_machine_s_whoever_logs_in(guest, pi, board):
    impatient = guest.settings.model_copy(update={"wait_seconds": 0.0}).device("guest", guest.project)
    with pi.connected():
        (keeper,) = board.keepers()
        with pytest.raises(UnavailableError) as caught:
            impatient.facts()
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.at) == (4, f"device guest ({GUEST}@127.0.0.1:{guest.settings.port})")
    assert problem.message == f"the device is in use: process {keeper.pid} of user {os.getuid()} measures on it"


@needs_root
def test_a_disk_that_is_full_is_told_and_the_next_try_finds_room(pi, board, files, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        (tmp_path / "large.onnx").write_bytes(bytes(200_000))
        device = board.settings(folder=str(disk)).device("pi", pi.project)
        request = PredictRequest(runtime="onnxruntime", model=tmp_path / "large.onnx", threads=1)
        with pytest.raises(UnavailableError) as caught:
            list(device.predict(request, [np.zeros((1, 1, 8, 8), np.float32)], limit_seconds=60))
        (problem,) = caught.value.problems
        assert caught.value.exit_code == 4
        assert problem.message.startswith("the device cannot store ")
        assert problem.message.endswith("(0.2 MB): [Errno 28] No space left on device")
        assert problem.do == "make room there, or name a folder with room: [devices.NAME] folder"
        board.until(lambda: not list(disk.iterdir()), "what had come is gone")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@needs_old_python
@pytest.mark.device
@pytest.mark.slow
def test_a_board_with_python_3_8_measures_with_the_runtime_that_it_has(board, pi, files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    old = board.settings(python=str(OLD_PYTHON)).device("old", pi.project)
    old.pin(old.presented_key())
    model = ModelFile(name="int8", path=files / "u8-one.onnx")
    comparison = ComparisonRequest(id="c", runtime="onnxruntime", threads=1, batch=1, inputs=tmp_path / "inputs.npy", models=(model,))
    bench = BenchRequest(comparisons=(comparison,), seconds=0.05, runs=11, windows=3, warmup_seconds=0.2, limit_seconds=5)
    request = PredictRequest(runtime="onnxruntime", model=files / "u8-one.onnx", threads=1)
    with old.connected():
        facts = old.facts()
        (windows,) = [message for message in old.ask("bench", bench, limit_seconds=60) if isinstance(message, Windows)]
        (there,) = old.predict(request, [samples], limit_seconds=60)
    assert facts.runtimes["python"].startswith("3.8.")
    assert sum(map(len, windows.ns)) >= 11
    with open_session("onnxruntime", files / "u8-one.onnx") as session:
        here = session(samples)
    assert (there.argmax(1) == here.argmax(1)).all()
    with pytest.raises(UnavailableError) as caught:
        require_runtime_there(facts, "onnxruntime", ">=1.22", at="profile arm")  # which has no build for Python 3.8
    assert caught.value.problems[0].message == f"device old has onnxruntime {facts.runtimes['onnxruntime']}, >=1.22 is needed"
