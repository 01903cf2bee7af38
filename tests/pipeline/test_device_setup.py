import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError, KdpipeError, UnavailableError
from kdpipe.pipeline.device_records import record_of
from kdpipe.pipeline.device_sections import read_devices
from kdpipe.pipeline.device_setup import add, clean, examine, likely_target, probe, remove, with_section, without_section
from kdpipe.targets.devices.ssh import KNOWN_HOSTS, SshDevice, fingerprint

TOML = '[project]\nname = "p"  # [devices.no]\n\n[targets.arm]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kdpipe.toml").write_text(TOML)
    return tmp_path


def given(board: Any, **more: object) -> dict[str, Any]:
    return {**board.settings().model_dump(mode="json", exclude={"connect_seconds", "wait_seconds"}, exclude_none=True), **more}


def added(folder: Path, values: dict[str, Any], name: str = "pi", *, yes: bool = True, replace: bool = False) -> list[str]:
    said: list[str] = []
    add(folder, name, values, replace=replace, confirm=lambda asked: bool(said.append(f"asked {asked}")) or yes, say=said.append)
    return said


def problem_of(error: KdpipeError, code: int) -> Any:
    (problem,) = error.problems
    assert error.exit_code == code
    return problem


def test_a_board_is_shown_by_its_fingerprint_pinned_reached_and_written(folder: Path, board: Any) -> None:
    said = added(folder, given(board))
    key = (board.folder / "hostkey.pub").read_text().rsplit(" ", 1)[0]
    assert f"asked {fingerprint('x ' + key)}" in said
    assert (folder / KNOWN_HOSTS).read_text() == f"kdpipe-pi {key}\n"
    assert (folder / "kdpipe.toml").read_text().startswith(TOML)
    settings = read_devices(folder)["pi"]
    assert settings == board.settings(connect_seconds=15.0)
    record = record_of(folder, "pi", settings)
    assert record is not None
    assert record.facts.kind == "ssh"
    assert "asked" not in " ".join(added(folder, {}))  # a second time there is nothing to ask

    checks = {check.name: check for check in examine(folder, "pi")}
    assert all(check.ok is not False for check in checks.values())
    assert checks["host key"].told.endswith(", as pinned")
    assert checks["used"].do == f'below [targets.{likely_target(record.facts)}] write device = "pi"'
    assert probe(folder, "pi").changes == ()

    (folder / "kdpipe.toml").write_text((folder / "kdpipe.toml").read_text().replace("[targets.arm]\n", "[targets.arm]\ndevice = 'pi'\n"))
    with pytest.raises(ConfigError) as caught:
        remove(folder, "pi")
    assert problem_of(caught.value, 2).do == "take it out of [targets.arm] first"
    (folder / "kdpipe.toml").write_text((folder / "kdpipe.toml").read_text().replace("device = 'pi'\n", ""))
    remove(folder, "pi")
    assert (folder / "kdpipe.toml").read_text() == TOML
    assert not (folder / KNOWN_HOSTS).exists()
    assert record_of(folder, "pi", settings) is None


def test_a_key_that_is_not_confirmed_leaves_everything_as_it_was(folder: Path, board: Any) -> None:
    with pytest.raises(UnavailableError) as caught:
        added(folder, given(board), yes=False)
    problem = problem_of(caught.value, 4)
    assert (problem.message, problem.at) == ("the host key was not confirmed: nothing is pinned, nothing is written", "device pi")
    assert problem.do == "compare the fingerprints, then try again"
    assert [path.name for path in folder.iterdir()] == ["kdpipe.toml"]
    assert (folder / "kdpipe.toml").read_text() == TOML


def test_a_board_that_cannot_be_used_is_not_written_and_its_key_not_kept(folder: Path, board: Any) -> None:
    with pytest.raises(UnavailableError, match="there is no"):
        added(folder, given(board, python="/none/python"))
    assert [path.name for path in folder.iterdir()] == ["kdpipe.toml"]


def test_another_key_is_refused_until_it_is_meant(folder: Path, board: Any) -> None:
    device = board.settings().device("pi", folder)
    assert isinstance(device, SshDevice)
    stranger = (board.folder / "stranger.pub").read_text().rsplit(" ", 1)[0]
    device.pin(f"kdpipe-pi {stranger}")
    with pytest.raises(UnavailableError) as caught:
        added(folder, given(board))
    problem = problem_of(caught.value, 4)
    assert problem.message.startswith(f"the host key of {board.host} is not the one that was pinned: SHA256:")
    assert problem.do == "if you know why: kdpipe devices add pi --replace"
    assert device.pinned_key() == f"kdpipe-pi {stranger}"
    added(folder, given(board), replace=True)
    assert device.pinned_key() != f"kdpipe-pi {stranger}"


@pytest.mark.parametrize(
    ("name", "values", "message", "do"),
    [
        ("-x", {"kind": "local"}, "a device cannot be called '-x'", "up to 100 letters"),
        ("pi", {}, "there is no device 'pi' yet", "say how it is reached: --host USER@HOST"),
        ("pi", {"kind": "shh"}, "there is no such kind of device", "did you mean 'ssh'?"),
        ("pi", {"kind": "ssh", "host": "-oX"}, "--host: not a host name, address or alias, with or without 'user@' before it", "options of a device"),
        ("pi", {"kind": "ssh", "host": "a@b:22"}, "--host a@b:22: the port stands apart", "--host a@b --port 22"),
        ("pi", {"kind": "emulated", "cpu": "Haswell", "host": "a@b"}, "a device of the kind emulated takes no --host", "options of a device"),
        ("pi", {"kind": "emulated", "cpu": "z80"}, "--cpu: not one of cortex-a53, cortex-a72, cortex-a76, neoverse-n1, Haswell", "options of a device"),
    ],
    ids=["name", "nothing said", "kind", "host", "port in host", "host and CPU", "cpu"],
)
def test_what_cannot_be_a_device_is_told(folder: Path, name: str, values: dict[str, Any], message: str, do: str) -> None:
    with pytest.raises(ConfigError) as caught:
        added(folder, values, name)
    problem = problem_of(caught.value, 2)
    assert problem.message == message
    assert problem.at
    assert problem.do.startswith(do)
    assert (folder / "kdpipe.toml").read_text() == TOML


def test_a_device_of_that_name_is_not_overwritten(folder: Path) -> None:
    added(folder, {"kind": "local"}, "here")
    with pytest.raises(ConfigError) as caught:
        added(folder, {"kind": "emulated", "cpu": "Haswell"}, "here")
    problem = problem_of(caught.value, 2)
    assert problem.message == "there is a device 'here' already, with other settings"
    assert problem.do == "kdpipe devices rm here, another name, or --replace"


def test_a_section_goes_in_and_out_and_the_rest_stays() -> None:
    values = {"kind": "ssh", "host": "a@b", "port": 22, "python": 'C:\\"x"'}
    for text in (TOML, "", "[devices.other]\nkind = 'local'  # mine\n"):
        for name in ("pi", "pi.local"):
            written = with_section(text, name, values)
            assert tomllib.loads(written)["devices"][name] == values
            assert without_section(written, name, at=Path("kdpipe.toml")).strip() == text.strip()


def test_a_section_that_cannot_be_cut_out_is_left() -> None:
    with pytest.raises(ConfigError) as caught:
        without_section("[devices]\npi = {kind = 'local'}\n", "pi", at=Path("kdpipe.toml"))
    problem = problem_of(caught.value, 2)
    assert problem.message == "[devices.pi] cannot be taken out of the file without touching the rest"
    assert (problem.at, problem.do) == ("kdpipe.toml", "remove its lines by hand")


def test_the_commands_tell_people_and_machines(folder: Path) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-m", "kdpipe.pipeline", *arguments], capture_output=True, text=True, check=False, cwd=folder)

    assert run("devices", "add", "here", "--kind", "local", "--json").returncode == 0
    assert '"kind": "local"' in run("devices", "ls", "--json").stdout
    doctor = run("devices", "doctor", "here")
    assert doctor.returncode == 0
    assert "ok   runtimes: onnxruntime " in doctor.stdout
    told = run("devices", "probe", "nowhere")
    assert told.returncode == 2
    assert "error: unknown device 'nowhere'\n" in told.stderr
    assert "do:  devices: here; kdpipe devices add nowhere makes one" in told.stderr


def test_what_a_killed_keeper_left_on_a_board_is_cleaned(folder: Path, board: Any) -> None:
    added(folder, given(board))
    assert clean(folder, "pi") == "nothing was left behind there"
    (board.room / "kdpipe-device-left" / "deep").mkdir(parents=True)
    (board.room / "kept").mkdir()
    assert clean(folder, "pi") == "1 folder of broken connections removed"
    assert [path.name for path in board.room.iterdir() if path.name != "kept"] == []
    (board.room / "kept").rmdir()


def test_what_an_emulated_cpu_has_on_this_host_is_cleaned_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "kdpipe.toml").write_text(TOML + "[devices.a72]\nkind = 'emulated'\ncpu = 'cortex-a72'\n[devices.here]\nkind = 'local'\n")
    assert clean(folder, "a72") == "nothing is prepared for it"
    cache = folder / "cache" / "kdpipe"
    for name in ("aarch64/usr/bin", "prefixes/aarch64-cortex-a72", "prefixes/x86_64-Haswell"):
        (cache / name).mkdir(parents=True)
    (cache / "aarch64" / "large").write_bytes(bytes(2_000_000))
    (cache / "prefixes" / "aarch64-cortex-a72" / "usr").symlink_to(folder)  # into the userland, or wherever: links are not followed
    assert clean(folder, "a72") == "2 MB of the emulator removed; kdpipe devices add a72 prepares them again"
    assert sorted(path.name for path in cache.iterdir()) == ["prefixes"]
    assert [path.name for path in (cache / "prefixes").iterdir()] == ["x86_64-Haswell"]
    assert (folder / "kdpipe.toml").is_file()
    assert clean(folder, "here") == "it keeps nothing"


def test_this_host_is_probed_and_checked_without_a_section(folder: Path) -> None:
    toml = TOML + "[targets.cpu]\n"
    (folder / "kdpipe.toml").write_text(toml)
    assert probe(folder, "host").facts.name == "host"
    checks = {check.name: check for check in examine(folder, "host")}
    assert checks["runtime of cpu"].ok
    assert checks["chip of arm"].told
    assert "used" not in checks
    assert (folder / "kdpipe.toml").read_text() == toml
    assert not (folder / ".kdpipe").exists()


@pytest.mark.parametrize("targets", ["[targets]\ncpu = 3", "targets = 3", "[targets.cpu]\naccuracy_on = 3"], ids=["a number", "no table", "no list"])
def test_a_device_is_checked_and_taken_out_whatever_else_is_wrong_with_the_targets(folder: Path, targets: str) -> None:
    (folder / "kdpipe.toml").write_text(f"{targets}\n[devices.here]\nkind = 'local'\n")
    assert all(check.ok is not False for check in examine(folder, "here"))
    remove(folder, "here")
    assert (folder / "kdpipe.toml").read_text() == f"{targets}\n"
