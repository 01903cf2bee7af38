"""A folder with ARM programs for the emulator: Python from Debian's or Ubuntu's packages, numpy and onnxruntime from PyPI's ARM wheels.

Nothing of this system changes: apt works in a state of its own, for the foreign architecture, and only unpacks. apt checks
each package against the distribution's signed index, pip each wheel against the index's digest; all digests are written
into `userland.json`. About 60 MB are fetched, 220 MB kept. Tried on Debian 12.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import sha256_of, write_json

PYTHON = "usr/bin/python3"
SITE = "site"
LIST = "userland.json"
"""what was unpacked: the sha256 of every package and wheel by its file name"""

_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_UBUNTU = "deb [signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg] http://ports.ubuntu.com/ubuntu-ports {} main universe\n"
_LIMIT_SECONDS = 1800
_LAST_WORDS = 300


def cache_folder(name: str) -> Path:
    """Where what can be made again lies: `$XDG_CACHE_HOME/kdpipe/NAME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdpipe" / name


def require_prepared(folder: Path, *, at: str, do: str) -> None:
    """UnavailableError where the folder is not a userland."""
    if not (folder / PYTHON).exists():
        raise UnavailableError(f"there is no ARM Python in {folder}", at=at, do=do)


def prepare(folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Make the userland `folder`, whole or not at all; one that is there is replaced. The digests of what it was made of.

    Raises UnavailableError where apt-get, dpkg-deb or the network are not there, with the tool's own last words.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UnavailableError(
                f"{tool} is not on this machine", at=folder, do="prepare it on Debian or Ubuntu, copy the folder, and name it: [devices.NAME] userland"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
        made = Path(work) / "made"
        made.mkdir()
        say("fetching an ARM Python from the distribution's packages")
        digests = _packages(Path(work) / "apt", made)
        say("fetching numpy and onnxruntime for ARM from PyPI")
        digests |= _wheels(made)
        write_json(made / LIST, dict(sorted(digests.items())))
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return digests


def _packages(state: Path, destination: Path) -> dict[str, str]:
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    settings = [
        f'Dir::State "{state}"; Dir::State::Lists "{state}/lists"; Dir::State::Status "{state}/status"; Dir::Cache "{state}/cache";',
        'APT::Architecture "arm64"; APT::Architectures {"arm64";}; APT::Sandbox::User "root"; Acquire::Languages "none"; Debug::NoLocking "1";',
    ]
    release = platform.freedesktop_os_release()
    if release.get("ID") == "ubuntu":  # whose main archive has no ARM packages
        (state / "sources.list").write_text(_UBUNTU.format(release.get("VERSION_CODENAME", "")))
        settings.append(f'Dir::Etc::SourceList "{state}/sources.list"; Dir::Etc::SourceParts "/dev/null";')
    (state / "apt.conf").write_text("\n".join(settings) + "\n")
    environment = {**os.environ, "APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}
    _run(["apt-get", "-q", "update"], destination, environment)
    _run(["apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install", *_PACKAGES], destination, environment)
    digests = {}
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(destination)], destination, environment)
        digests[package.name] = sha256_of(package)
    return digests


def _wheels(destination: Path) -> dict[str, str]:
    version = next(path.name for path in sorted((destination / "usr" / "bin").glob("python3.*")) if path.name.removeprefix("python3.").isdigit())
    report = destination / "report.json"
    arguments = [sys.executable, "-m", "pip", "install", "-q", "--target", str(destination / SITE), "--only-binary=:all:", "--report", str(report)]
    arguments += [word for name in _PLATFORMS for word in ("--platform", name)]
    wanted = ["numpy", f"onnxruntime=={metadata.version('onnxruntime')}"]  # that of this host, so that what differs is the CPU
    _run([*arguments, "--implementation", "cp", "--python-version", version.removeprefix("python"), *wanted], destination, dict(os.environ))
    installed = json.loads(report.read_text())["install"]
    report.unlink()
    return {Path(it["download_info"]["url"]).name: it["download_info"]["archive_info"]["hashes"]["sha256"] for it in installed}


def _run(arguments: Sequence[str], at: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=_LIMIT_SECONDS, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-_LAST_WORDS:]
        raise UnavailableError(f"{' '.join(arguments[:2])} failed: {words}", at=at, do="check the network and the package sources, then try again")
