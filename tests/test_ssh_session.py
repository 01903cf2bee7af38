"""The page of the recorded session is what the recording shows; recording it anew: benchmarks/ssh_session.py."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def session(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("ssh_session", ROOT / "benchmarks" / "ssh_session.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("recorded_terminal", None)


def test_the_page_is_what_a_terminal_shows_of_the_recording(session):
    assert session.PAGE.read_text(encoding="utf-8") == session.page(session.CAST)


def test_a_terminal_shows_progress_as_it_ended(session, tmp_path):
    events = ["$ run\r\n", "10 %\r", "100 %\r\n", "a\r\nb\r\n", "\x1b[2A\x1b[2Kc\r\n"]
    lines = [{"version": 2, "width": 20, "height": 10}, *([float(k), "o", event] for k, event in enumerate(events))]
    (tmp_path / "x.cast").write_text("\n".join(map(json.dumps, lines)))
    assert session.screen(tmp_path / "x.cast") == "$ run\n100 %\nc\nb\n"


def test_commands_run_in_a_terminal_and_their_questions_are_answered(session, tmp_path):
    recording = session.Recording({"PATH": "/usr/bin:/bin"})
    code = recording.run("test -t 0 && test -t 1 && read -p 'sure? [y/N]: ' x && echo \"said $x\"; exit 3", tmp_path, {"[y/N]": "y"})
    assert code == 3
    recording.write(tmp_path / "x.cast", "test")
    assert session.screen(tmp_path / "x.cast").endswith("\nsure? [y/N]: y\nsaid y\n")


def test_frames_of_a_bar_that_are_erased_at_once_are_left_out_and_the_end_stays(session):
    bar = [(k / 10, f"\r\x1b[2K\x1b[36m{k} %\x1b[0m") for k in range(101)]
    events = [(0.0, "$ run\r\n"), *bar, (10.2, "\r\x1b[2Kdone\r\n"), (10.3, "\r\x1b[2Knext\r\n")]
    thinned = sys.modules["recorded_terminal"].thinned(events)
    assert [text for _, text in thinned[-2:]] == ["\r\x1b[2Kdone\r\n", "\r\x1b[2Knext\r\n"]
    assert 4 <= len(thinned) <= 8
