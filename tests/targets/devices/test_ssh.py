import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.targets.devices import link
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile, PredictRequest, StartRequest, Windows
from kdpipe.targets.devices.ssh import KNOWN_HOSTS, Ssh, fingerprint
from kdpipe.targets.runtimes.runtime import open_session

SLEEPS = """
import json, os, sys, time
print(json.dumps({"kind": "hello", "protocol": 2, "runtimes": {"pid": str(os.getpid()), "folder": os.getcwd()}}), flush=True)
time.sleep(600)
"""
TALKS = "import json\nprint(json.dumps({'kind': 'hello', 'protocol': 2, 'runtimes': {}}))\nprint(json.dumps({'kind': 'done'}))"


def the_problem(caught, code=4):
    (problem,) = caught.value.problems
    assert caught.value.exit_code == code
    return problem


def refused(device, **arguments):
    with pytest.raises(UnavailableError) as caught:
        list(device.ask("probe", limit_seconds=30, **arguments))
    return the_problem(caught)


def test_the_facts_of_a_board_are_told_by_the_board(pi):
    there, here = pi.facts(), LocalDevice().facts()
    assert (there.name, there.kind) == ("pi", "ssh")
    assert (there.cpu, there.architecture, there.memory_bytes, there.runtimes) == (here.cpu, here.architecture, here.memory_bytes, here.runtimes)
    assert set(there.instruction_sets) == set(here.instruction_sets)
    assert pi.identity() == {**LocalDevice().identity(), "name": "pi"}


def test_models_are_measured_there_and_nothing_stays(pi, board, files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    model = ModelFile(name="int8", path=files / "u8.onnx")
    comparison = ComparisonRequest(id="c", runtime="onnxruntime", threads=1, batch=1, inputs=tmp_path / "inputs.npy", models=(model,))
    bench = BenchRequest(comparisons=(comparison,), seconds=0.05, runs=11, windows=3, warmup_seconds=0.2, limit_seconds=5)
    start = StartRequest(runtime="onnxruntime", model=files / "u8.onnx", threads=1, batch=1, inputs=tmp_path / "inputs.npy")
    with pi.connected():
        windows = [message for message in pi.ask("bench", bench, limit_seconds=60) if isinstance(message, Windows)]
        (folder,) = board.room.iterdir()
        stored = sorted(path.suffix for path in folder.iterdir() if path.suffix)
        (measured,) = pi.ask("start", start, limit_seconds=60)
        assert sorted(path.suffix for path in folder.iterdir() if path.suffix) == stored == [".npy", ".onnx", ".py"]  # sent once
    assert sum(map(len, windows[0].ns)) >= 11
    assert measured.peak_memory_bytes > 10e6
    board.until(lambda: not list(board.room.iterdir()), "the folder is gone")


def test_the_answers_of_the_board_are_those_of_the_same_runtime_here(pi, files, samples):
    request = PredictRequest(runtime="onnxruntime", model=files / "u8-one.onnx", threads=1)
    batches = [samples[:16], samples[16:32], samples[32:]]
    there = list(pi.predict(request, batches, limit_seconds=60))
    with open_session("onnxruntime", files / "u8-one.onnx") as session:
        here = [session(batch) for batch in batches]
    assert [logits.shape for logits in there] == [(16, 10), (16, 10), (8, 10)]
    assert all(np.array_equal(a, b) for a, b in zip(there, here, strict=True))


def test_a_host_key_that_is_not_pinned_is_not_trusted(board, tmp_path):
    with pytest.raises(ConfigError) as caught:
        list(board.settings().device("pi", tmp_path).ask("probe", limit_seconds=30))
    problem = the_problem(caught, code=2)
    assert problem.message == "the host key of root@127.0.0.1 is not pinned in this project".replace("root@127.0.0.1", board.host)
    assert problem.at == str(tmp_path / KNOWN_HOSTS)
    assert problem.do == "kdpipe devices add pi: it shows the key's fingerprint and asks"


def test_a_changed_host_key_is_refused(pi, board):
    stranger = (board.folder / "stranger.pub").read_text().rsplit(" ", 1)[0]
    pi.pin(f"kdpipe-pi {stranger}")
    problem = refused(pi)
    assert problem.message == f"the host key of {board.host} is not the one that was pinned: another machine answers there, or it was installed anew"
    assert problem.at == str(pi.project / KNOWN_HOSTS)
    assert problem.do == "if you know why: kdpipe devices add pi --replace shows the new fingerprint and asks"


def test_the_pinned_key_is_the_server_s_and_belongs_to_one_device(pi, board):
    public = (board.folder / "hostkey.pub").read_text().split()[:2]
    assert pi.pinned_key().split() == ["kdpipe-pi", *public]
    told = subprocess.run(["ssh-keygen", "-l", "-f", board.folder / "hostkey.pub"], capture_output=True, text=True, check=True).stdout
    assert fingerprint(pi.pinned_key()).split()[0] == told.split()[1]
    other = board.settings().device("other", pi.project)
    assert other.pinned_key() is None
    other.pin("kdpipe-other ssh-ed25519 AAAA")
    pi.pin(None)
    assert (pi.project / KNOWN_HOSTS).read_text() == "kdpipe-other ssh-ed25519 AAAA\n"
    other.pin(None)
    assert not (pi.project / KNOWN_HOSTS).exists()


def test_a_login_that_is_refused_is_told(board, pi):
    device = board.settings(identity_file=board.folder / "stranger").device("pi", pi.project)
    problem = refused(device)
    assert problem.message.startswith(f"{board.host} refuses the login: ")
    assert problem.at == f"device pi ({board.host}:{board.port})"
    assert problem.do == f"ssh-copy-id -p {board.port} {board.host}, or name a key without passphrase: [devices.pi] identity_file"


def test_a_machine_that_is_not_there_is_told(board, pi):
    problem = refused(board.settings(port=1).device("pi", pi.project))
    assert problem.message.startswith(f"{board.host} is not reached: ")
    assert problem.do == "check that it is switched on, and its name or address and port"


def test_a_python_that_is_not_there_is_told(board, pi):
    problem = refused(board.settings(python="~/none/bin/python").device("pi", pi.project))
    assert problem.message.startswith("there is no '~/none/bin/python' on the device: ")
    assert problem.do == "install Python 3.8 or newer there, or name it: [devices.pi] python"


@pytest.mark.parametrize(
    ("python", "do"),
    [
        ("python3", "on the device: python3 -m venv ~/kd && ~/kd/bin/pip install numpy onnxruntime; then [devices.pi] python = '~/kd/bin/python'"),
        ("/opt/kd/bin/python", "install it there: /opt/kd/bin/python -m pip install numpy onnxruntime"),
    ],
    ids=["the system's Python", "one of its own"],
)
def test_a_python_without_numpy_is_told_what_to_install(board, pi, agent_of, python, do):
    words = "Traceback (most recent call last):\n  File 'agent.py'\nModuleNotFoundError: No module named 'numpy'"
    problem = board.settings(python=python).device("pi", pi.project)._broken_off(link.Ended(kind="ended", status=1, errors=words)).problems[0]
    assert problem.message == "the measuring process there ended early with status 1: ModuleNotFoundError: No module named 'numpy'"
    assert problem.do == do


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("import sys; sys.version_info = (3, 7, 1, 'final', 0); sys.argv.pop(1); exec(sys.argv.pop(1))", "Python 3.8 or newer is needed, this is "),
        (
            "print('Welcome to Raspbian', flush=True); import sys; sys.argv.pop(1); exec(sys.argv.pop(1))",
            "the login there prints words of its own: 'Welcome to Raspbian'",
        ),
    ],
    ids=["an old Python", "a login that prints"],
)
def test_a_python_that_cannot_be_talked_to_is_told(board, pi, tmp_path, lines, said):
    wrapper = tmp_path / "python with spaces"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{lines}" "$@"\n')
    wrapper.chmod(0o755)
    assert refused(board.settings(python=str(wrapper)).device("pi", pi.project)).message.startswith(said)


def test_a_login_that_ends_without_a_word_is_told_what_it_needs(board, pi, tmp_path):
    wrapper = tmp_path / "python"
    wrapper.write_text("#!/bin/sh\nexit 1\n")  # as a login whose shell is /bin/false
    wrapper.chmod(0o755)
    problem = refused(board.settings(python=str(wrapper)).device("pi", pi.project))
    assert problem.message == "the login there ended with status 1 before Python started, and said nothing"
    assert problem.at == f"device pi ({board.host}:{board.port})"
    assert problem.do.startswith("the user needs a shell there that runs commands: ")


def test_what_the_user_writes_never_reaches_a_shell(board, pi, tmp_path):
    bait = tmp_path / "bait"
    for python in (f"$(touch {bait})`touch {bait}`; touch {bait}", f"x' ; touch '{bait}"):
        refused(board.settings(python=python).device("pi", pi.project))
    assert not bait.exists()
    for host in ("-oProxyCommand=touch /tmp/x", "pi;ls", "pi $(ls)", "a b"):
        with pytest.raises(ValueError, match="not a host name"):
            Ssh(kind="ssh", host=host)


def test_a_cut_link_is_told_and_leaves_nothing_there(pi, board, agent_of):
    agent_of(SLEEPS)
    messages = pi.ask("probe", limit_seconds=60)
    there = next(messages).runtimes
    assert Path(there["folder"]).is_dir()
    (keeper,) = board.keepers()
    for process in keeper.parents()[:2]:
        if process.pid != board.server.pid and "sshd" in process.name():
            process.kill()  # as when the cable is pulled and both ends notice
    with pytest.raises(UnavailableError) as caught:
        next(messages)
    problem = the_problem(caught)
    assert problem.message.startswith("the connection to the device was cut: ")
    assert problem.do == "check the network and that the device is up, then try again; nothing was measured"
    board.until(lambda: not psutil.pid_exists(int(there["pid"])), "the agent is gone")
    board.until(lambda: not Path(there["folder"]).exists(), "the folder is gone")


CLIENT = """
import sys
from pathlib import Path
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.ssh import Ssh
agent.__file__ = sys.argv[3]
for message in Ssh.model_validate_json(sys.argv[1]).device("pi", Path(sys.argv[2])).ask("probe", limit_seconds=60):
    print(message.runtimes["pid"], message.runtimes["folder"], flush=True)
"""


def test_a_link_that_is_cut_without_a_word_ends_what_runs_there(pi, board, agent_of, tmp_path, monkeypatch):
    keeper = (Path(link.__file__).parent / "keeper.py").read_text()
    (tmp_path / "keeper.py").write_text(keeper.replace("SILENCE_SECONDS = 60.0", "SILENCE_SECONDS = 2.0"))
    monkeypatch.setattr(link, "files", lambda package: tmp_path)
    agent_of(SLEEPS)
    messages = pi.ask("probe", limit_seconds=60)
    there = next(messages).runtimes
    (client,) = [child for child in psutil.Process().children() if child.name() == "ssh"]
    client.suspend()  # as when the network is gone: nothing comes, and nobody is told
    try:
        board.until(lambda: not psutil.pid_exists(int(there["pid"])), "the agent is gone")
        board.until(lambda: not Path(there["folder"]).exists(), "the folder is gone")
    finally:
        client.resume()
    with pytest.raises(UnavailableError) as caught:
        list(messages)
    assert the_problem(caught).do == "check the network and that the device is up, then try again; nothing was measured"


def test_a_link_that_is_cut_while_a_file_is_sent_leaves_no_piece_of_it(pi, board, tmp_path, monkeypatch):
    (tmp_path / "large.onnx").write_bytes(bytes(40 * link.CHUNK))
    written = []

    def write(self, content, write=link.Link._write):
        written.append(len(content))
        if written.count(link.CHUNK) == 10:
            for process in board.keepers()[0].parents()[:2]:
                if process.pid != board.server.pid and "sshd" in process.name():
                    process.kill()
        write(self, content)

    with pi.connected():
        (folder,) = board.room.iterdir()
        monkeypatch.setattr(link.Link, "_write", write)
        with pytest.raises(UnavailableError) as caught:
            pi.link().put("large.onnx", tmp_path / "large.onnx")
    assert the_problem(caught).message.startswith("the connection to the device was cut: ")
    board.until(lambda: not folder.exists(), "the folder is gone")


def test_the_processes_there_die_with_the_client(pi, board, tmp_path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    arguments = [sys.executable, "-c", CLIENT, pi.settings.model_dump_json(), str(pi.project), str(tmp_path / "sleeps.py")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as client:
        pid, folder = client.stdout.readline().split(" ", 1)
        assert psutil.pid_exists(int(pid))
        client.kill()
    board.until(lambda: not psutil.pid_exists(int(pid)), "the agent is gone")
    board.until(lambda: not Path(folder.strip()).exists(), "the folder is gone")


def test_a_keeper_that_is_killed_takes_its_agent_along_and_the_next_one_cleans_up(pi, board, agent_of):
    agent_of(SLEEPS)
    messages = pi.ask("probe", limit_seconds=60)
    there = next(messages).runtimes
    (keeper,) = board.keepers()
    keeper.send_signal(signal.SIGKILL)
    board.until(lambda: not psutil.pid_exists(int(there["pid"])), "the agent is gone")
    with pytest.raises(UnavailableError):
        next(messages)
    assert Path(there["folder"]).is_dir()
    agent_of(TALKS)
    list(pi.ask("probe", limit_seconds=30))
    assert not Path(there["folder"]).exists()


def test_an_agent_that_is_killed_is_told_by_its_status_and_the_link_goes_on(pi, agent_of):
    agent_of(SLEEPS)
    with pi.connected():
        messages = pi.ask("probe", limit_seconds=60)
        os.kill(int(next(messages).runtimes["pid"]), signal.SIGKILL)
        with pytest.raises(UnavailableError) as caught:
            next(messages)
        assert the_problem(caught).message == "the measuring process there ended early with status -9"
        assert the_problem(caught).do == "look at the device's memory and at what else runs there, then try again"


def test_whoever_stops_reading_ends_the_agent_there(pi, board, agent_of):
    agent_of(SLEEPS)
    with pi.connected():
        messages = pi.ask("probe", limit_seconds=60)
        pid = int(next(messages).runtimes["pid"])
        messages.close()
        board.until(lambda: not psutil.pid_exists(pid), "the agent is gone")
        messages = pi.ask("probe", limit_seconds=60)  # the same link takes the next request
        assert int(next(messages).runtimes["pid"]) != pid
        messages.close()


def test_a_measurement_that_takes_too_long_is_ended(pi, agent_of):
    agent_of(SLEEPS)
    with pytest.raises(UnavailableError) as caught:
        list(pi.ask("probe", limit_seconds=1.5))
    assert the_problem(caught).message == "the device was not done with probe, which was given 1.5 s"


def test_a_device_that_falls_silent_is_given_up(pi, board, agent_of, monkeypatch):
    agent_of(SLEEPS)
    messages = pi.ask("probe", limit_seconds=60)
    next(messages)
    monkeypatch.setattr(link, "SILENCE_SECONDS", 1.0)
    (keeper,) = board.keepers()
    keeper.suspend()  # as a board that hangs
    try:
        with pytest.raises(UnavailableError) as caught:
            next(messages)
    finally:
        keeper.kill()
    assert the_problem(caught).message == "the device said nothing for 1 s while probe, which was given 60 s"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("print('Segmentation fault')", "the device's answer is not valid ("),
        ('print(\'{"kind": "hello", "protocol": 9, "runtimes": {}}\')', "the agent speaks protocol 9, this kdpipe speaks 2"),
        ("import sys; sys.exit('MemoryError')", "the measuring process there ended early with status 1: MemoryError"),
        ("import sys; sys.stdout.write('x' * 200_000)", "the device's answer is larger than 0.1 MB"),
        ('while True: print(\'{"kind": "hello", "protocol": 2, "runtimes": {}}\')', "the device's answer is larger than 0.3 MB"),
        ('import sys; sys.exit("\\x1b[2J\\x07all is well")', "the measuring process there ended early with status 1: [2J all is well"),
    ],
    ids=["no json", "another protocol", "dies", "a line too large", "too many lines", "words that steer the terminal"],
)
def test_an_answer_that_is_not_one_gives_no_number(pi, agent_of, monkeypatch, source, said):
    monkeypatch.setattr(link, "LINE_BYTES", 100_000)
    monkeypatch.setattr(link, "ANSWER_BYTES", 300_000)
    agent_of(source)
    assert refused(pi).message.startswith(said)


def test_a_file_that_arrives_damaged_is_not_used(pi, tmp_path, monkeypatch):
    keeper = (Path(link.__file__).parent / "keeper.py").read_text()
    damaging = keeper.replace("digest.update(piece)", "piece = bytes([piece[0] ^ 1]) + piece[1:]; digest.update(piece)")
    assert damaging != keeper
    (tmp_path / "keeper.py").write_text(damaging)
    monkeypatch.setattr(link, "files", lambda package: tmp_path)
    problem = refused(pi)
    assert problem.message == "agent.py arrived damaged: its digest there is another"
    assert problem.do == "try again; if it stays, check the device's memory and disk"


def test_a_device_without_room_is_told(board, pi, tmp_path):
    wrapper = tmp_path / "small"
    wrapper.write_text(f'#!/bin/sh\nulimit -f 8\nexec {sys.executable} "$@"\n')  # 4 kB, as a disk with that much left
    wrapper.chmod(0o755)
    problem = refused(board.settings(python=str(wrapper)).device("pi", pi.project))
    assert problem.message.startswith("the device cannot store agent.py (0.")
    assert problem.do == "make room there, or name a folder with room: [devices.NAME] folder"
    problem = refused(board.settings(folder="/nowhere").device("pi", pi.project))
    assert problem.message.startswith("the device cannot keep files: ")


def test_one_measurement_at_a_time(board, pi, agent_of):
    agent_of(SLEEPS)
    messages = pi.ask("probe", limit_seconds=60)
    next(messages)
    (keeper,) = board.keepers()
    impatient = board.settings(wait_seconds=0).device("pi", pi.project)
    problem = refused(impatient)
    assert problem.message == f"the device is in use: process {keeper.pid} of user {os.getuid()} measures on it"
    assert problem.do == "wait until it is done: two measurements at once would both be wrong"
    threading.Timer(1.0, keeper.terminate).start()
    patient = board.settings(wait_seconds=20).device("pi", pi.project)
    agent_of(TALKS)
    assert [message.kind for message in patient.ask("probe", limit_seconds=30)] == ["hello"]
    with pytest.raises(UnavailableError):
        next(messages)
