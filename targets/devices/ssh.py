"""A Linux board reached by OpenSSH: nothing is installed there, nothing stays there, and its host key is pinned in the project.

The system's `ssh` is the one process between us and the board's keeper; the user's own ~/.ssh/config (aliases, jump hosts)
applies, but for what is fixed below. Why OpenSSH and not a library: docs/decisions/openssh-client.md.
"""

import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, JsonValue, StringConstraints

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.device import Command, device_facts, identity_of
from kdpipe.targets.devices.frames import frame, logits_of
from kdpipe.targets.devices.link import BOOTSTRAP, LAST_WORDS, BusyError, Ended, Link
from kdpipe.targets.devices.messages import (
    BenchRequest,
    Done,
    EnergyRequest,
    Facts,
    Message,
    ModelFile,
    PredictRequest,
    Request,
    StartRequest,
    parsed,
    printable,
)
from kdpipe.targets.measurements import DeviceFacts

KNOWN_HOSTS = "kdpipe.known_hosts"
"""beside kdpipe.toml, to be kept with it: the pinned host keys, one line a device"""

PROBE_SECONDS = 60.0
_HOST = r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_:\[][A-Za-z0-9._:%\[\]-]*"  # never begins with '-': it would be an option
_ALIAS = "kdpipe-{}"
_SSH_FAILED = 255
_BUSY_PAUSE_SECONDS = 1.0

Model = TypeVar("Model", bound=BaseModel)


def _host(value: str) -> str:
    if not re.fullmatch(_HOST, value) or len(value) > 255:
        raise ValueError("not a host name, address or alias, with or without 'user@' before it")
    return value


class Ssh(BaseModel, extra="forbid", frozen=True):
    """A Linux machine reached by OpenSSH."""

    kind: Literal["ssh"] = Field(description="a Linux machine reached by OpenSSH")
    host: Annotated[str, AfterValidator(_host)] = Field(description="'user@host', 'host', or an alias of ~/.ssh/config")
    port: int | None = Field(None, ge=1, le=65535, description="default: that of ~/.ssh/config, else 22")
    identity_file: Path | None = Field(None, description="private key; default: what ssh uses by itself (agent, ~/.ssh). It must not ask for a passphrase")
    python: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = Field(
        "python3", description="the Python there that has numpy and the runtime: a name or path, e.g. '~/venv/bin/python'"
    )
    folder: Annotated[str, StringConstraints(pattern=r"^/", max_length=1000)] | None = Field(
        None, description="folder there with room for the models, meanwhile; default: the system's temporary folder"
    )
    connect_seconds: float = Field(15.0, gt=0, le=600, description="most time for connecting, in s")
    wait_seconds: float = Field(60.0, ge=0, le=86400, description="most time to wait for another measurement there to end, in s")

    def device(self, name: str, project: Path) -> "SshDevice":
        """The board; not connected yet."""
        return SshDevice(name, self, project)


class SshDevice:
    """A board. Every request starts a fresh agent there; the connection and what was sent are kept inside `connected()`."""

    no_latency: str | None = None

    def __init__(self, name: str, settings: Ssh, project: Path) -> None:
        self.name = name
        self.settings = settings
        self.project = project
        self._link: Link | None = None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """See `Device.connected`."""
        if self._link is not None:
            yield
            return
        self._link = self._opened()
        try:
            yield
        finally:
            self._link.close()
            self._link = None

    def link(self) -> Link:
        """The open connection; only inside `connected()`."""
        assert self._link is not None
        return self._link

    def facts(self) -> DeviceFacts:
        """See `Device.facts`."""
        for message in self.ask("probe", limit_seconds=PROBE_SECONDS):
            if isinstance(message, Facts):
                return device_facts(self.name, "ssh", message)
        raise UnavailableError("the device told nothing of itself", at=self._at, do="run it again")

    def identity(self) -> Mapping[str, JsonValue]:
        """See `identity_of`."""
        return identity_of(self.facts())

    def ask(self, command: Command, request: Request | None = None, *, limit_seconds: float) -> Iterator[Message]:
        """See `Device.ask`. Whoever stops reading ends the agent there."""
        with self.connected():
            yield from self._talk(command, request, None, limit_seconds)

    def predict(self, request: PredictRequest, batches: Iterable[Float32Array], *, limit_seconds: float) -> Iterator[Float32Array]:
        """See `Device.predict`."""
        sizes: list[int] = []
        with self.connected():
            yield from logits_of(self._talk("predict", request, (frame(batch, sizes) for batch in batches), limit_seconds), sizes, device=self.name)

    def arguments(self, options: Iterable[str], *command: str) -> list[str]:
        """The ssh command line with `options` (`Key=value`); `command` is run by the login shell there."""
        settings = self.settings
        words = ["ssh", "-T"]
        for option in (
            "BatchMode=yes",
            f"ConnectTimeout={max(1, round(settings.connect_seconds))}",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=4",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "ControlPath=none",  # a connection of its own, so that closing it closes all that hangs on it
            "EscapeChar=none",
            "LogLevel=ERROR",
            "CheckHostIP=no",
            "HashKnownHosts=no",
            "UpdateHostKeys=no",
            "GlobalKnownHostsFile=/dev/null",
            f"HostKeyAlias={_ALIAS.format(self.name)}",
            *options,
        ):
            words += ["-o", option]
        if settings.port is not None:
            words += ["-p", str(settings.port)]
        if settings.identity_file is not None:
            words += ["-o", "IdentitiesOnly=yes", "-i", str(self.project / settings.identity_file.expanduser())]
        return [*words, "--", settings.host, *command]

    def presented_key(self) -> str:
        """The host key that the machine presents now, as a line of a known_hosts file; nothing is logged in for it.

        Raises UnavailableError where the machine is not reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "known"
            options = [f"UserKnownHostsFile={_quoted(known)}", "StrictHostKeyChecking=accept-new", "PubkeyAuthentication=no", "PasswordAuthentication=no"]
            arguments = self.arguments([*options, "KbdInteractiveAuthentication=no", "GSSAPIAuthentication=no"], "true")
            require_ssh(self._at)
            done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=self.settings.connect_seconds + 30, check=False)
            if not known.is_file():
                raise self._explained(done.returncode, done.stderr, heard=True)
            return known.read_text().strip()

    def pinned_key(self) -> str | None:
        """The line of the project's known_hosts file for this device; None where it is not pinned."""
        path = self.project / KNOWN_HOSTS
        lines = path.read_text().splitlines() if path.is_file() else []
        return next((line for line in lines if line.split(" ", 1)[0] == _ALIAS.format(self.name)), None)

    def pin(self, line: str | None) -> None:
        """Write the key's line into the project's known_hosts file in place of the former one; None: forget it."""
        path = self.project / KNOWN_HOSTS
        lines = [kept for kept in (path.read_text().splitlines() if path.is_file() else []) if kept.split(" ", 1)[0] != _ALIAS.format(self.name)]
        lines += [line] if line else []
        if lines:
            path.write_text("\n".join(lines) + "\n")
        else:
            path.unlink(missing_ok=True)

    @property
    def _at(self) -> str:
        return f"device {self.name} ({self.settings.host}{f':{self.settings.port}' if self.settings.port else ''})"

    def _opened(self) -> Link:
        require_ssh(self._at)
        if self.pinned_key() is None:
            raise ConfigError(
                f"the host key of {self.settings.host} is not pinned in this project",
                at=str(self.project / KNOWN_HOSTS),
                do=f"kdpipe devices add {self.name}: it shows the key's fingerprint and asks",
            )
        # ~/ is not expanded inside quotes; a login starts at home, so that the path without it is the same
        python = self.settings.python.removeprefix("~/")
        words = [python, "-c", BOOTSTRAP, *([self.settings.folder] if self.settings.folder else [])]
        options = [f"UserKnownHostsFile={_quoted(self.project / KNOWN_HOSTS)}", "StrictHostKeyChecking=yes"]
        arguments = self.arguments(options, "exec " + shlex.join(words))
        deadline = time.monotonic() + self.settings.wait_seconds
        while True:
            try:
                return Link(arguments, at=self._at, explain=self._explained, connect_seconds=self.settings.connect_seconds + 15)
            except BusyError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_BUSY_PAUSE_SECONDS)

    def _talk(self, command: str, request: Request | None, frames: Iterator[bytes] | None, limit_seconds: float) -> Iterator[Message]:
        link = self.link()
        link.put("agent.py", Path(agent.__file__))
        content: JsonValue = {} if request is None else self._sent(link, request).model_dump(mode="json")
        for line in link.run(command, content, limit_seconds=limit_seconds, feed=frames):
            if isinstance(line, Ended):
                raise self._broken_off(line)
            message = parsed(line, device=self.name)
            if isinstance(message, Done):
                return
            yield message

    def _sent(self, link: Link, request: Request) -> Request:
        """The request with every file sent, and named as it is there."""
        if isinstance(request, BenchRequest):
            comparisons = [
                it.model_copy(update={"inputs": _there(link, it.inputs), "models": tuple(_model_there(link, model) for model in it.models)})
                for it in request.comparisons
            ]
            return request.model_copy(update={"comparisons": tuple(comparisons)})
        if isinstance(request, EnergyRequest):
            return request.model_copy(update={"inputs": _there(link, request.inputs), "models": tuple(_model_there(link, model) for model in request.models)})
        moved = {"model": _there(link, request.model)} | ({"inputs": _there(link, request.inputs)} if isinstance(request, StartRequest) else {})
        return request.model_copy(update=moved)

    def _broken_off(self, ended: Ended) -> UnavailableError:
        last = ended.errors.splitlines()[-1:]
        words = f": {printable(last[0])[:LAST_WORDS]}" if last else ""
        if "No module named 'numpy'" in words:
            python = self.settings.python
            do = f"install it there: {python} -m pip install numpy onnxruntime"
            if "/" not in python:  # the system's, which on Debian and its kin takes no packages from pip
                do = f"on the device: {python} -m venv ~/kd && ~/kd/bin/pip install numpy onnxruntime; then [devices.{self.name}] python = '~/kd/bin/python'"
        else:
            do = "look at the device's memory and at what else runs there, then try again"
        return UnavailableError(f"the measuring process there ended early with status {ended.status}{words}", at=self._at, do=do)

    def _explained(self, status: int, words: str, *, heard: bool) -> UnavailableError:
        """What ssh's status and last words mean; `heard`: whether the device had answered before."""
        last = printable(words.splitlines()[-1])[:LAST_WORDS] if words else f"status {status}"
        host = self.settings.host
        if "HOST IDENTIFICATION HAS CHANGED" in words or "Host key verification failed" in words:
            return UnavailableError(
                f"the host key of {host} is not the one that was pinned: another machine answers there, or it was installed anew",
                at=str(self.project / KNOWN_HOSTS),
                do=f"if you know why: kdpipe devices add {self.name} --replace shows the new fingerprint and asks",
            )
        if "Permission denied" in words:
            return UnavailableError(
                f"{host} refuses the login: {last}",
                at=self._at,
                do=f"ssh-copy-id {f'-p {self.settings.port} ' if self.settings.port else ''}{host}, "
                f"or name a key without passphrase: [devices.{self.name}] identity_file",
            )
        if status == _SSH_FAILED and any(word in words for word in ("Could not resolve", "refused", "timed out", "No route", "unreachable", "banner exchange")):
            return UnavailableError(f"{host} is not reached: {last}", at=self._at, do="check that it is switched on, and its name or address and port")
        if status == 127 or "not found" in last or "No such file" in last:
            return UnavailableError(
                f"there is no {self.settings.python!r} on the device: {last}",
                at=self._at,
                do=f"install Python 3.8 or newer there, or name it: [devices.{self.name}] python",
            )
        if status != _SSH_FAILED and not words and not heard:  # /bin/false, or a shell that takes no command
            return UnavailableError(
                f"the login there ended with status {status} before Python started, and said nothing",
                at=self._at,
                do=f"the user needs a shell there that runs commands: 'ssh {host} python3 --version' must answer (on the device: chsh -s /bin/sh USER)",
            )
        if "Python 3.8 or newer" in words:
            return UnavailableError(last, at=self._at, do=f"install a newer one there and name it: [devices.{self.name}] python")
        return UnavailableError(
            f"the connection to the device was cut: {last}", at=self._at, do="check the network and that the device is up, then try again; nothing was measured"
        )


def require_ssh(at: str) -> None:
    """UnavailableError where this machine has no OpenSSH client."""
    if shutil.which("ssh") is None:
        raise UnavailableError("the ssh client is not installed on this machine", at=at, do="apt-get install openssh-client")


def fingerprint(key_line: str) -> str:
    """`SHA256:… (ED25519)` of a line of a known_hosts file, as ssh-keygen tells it."""
    done = subprocess.run(["ssh-keygen", "-l", "-f", "-"], input=key_line + "\n", capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"(SHA256:\S+).*(\(\S+\))", done.stdout)
    if found is None:
        raise UnavailableError(f"ssh-keygen cannot read the host key: {done.stderr.strip()}", at="ssh-keygen -l", do="install OpenSSH's client tools")
    return f"{found[1]} {found[2]}"


def _quoted(path: Path) -> str:
    """A path in an option of ssh: names with spaces stay one, `%` is no token."""
    text = str(path.resolve()).replace("%", "%%")
    if '"' in text:
        raise ConfigError("ssh cannot name a file with a quotation mark in its path", at=path, do="move the project to a folder without one")
    return f'"{text}"'


def _there(link: Link, file: Path) -> Path:
    """The file's name on the device: its digest, so that a file is sent once; an OpenVINO model's weights go with it."""
    stem = sha256_of(file)[:32]
    link.put(stem + file.suffix, file)
    weights = file.with_suffix(".bin")
    if file.suffix == ".xml" and weights.is_file():
        link.put(stem + ".bin", weights)
    return Path(stem + file.suffix)


def _model_there(link: Link, model: ModelFile) -> ModelFile:
    return model.model_copy(update={"path": _there(link, model.path)})


plugin = Ssh
