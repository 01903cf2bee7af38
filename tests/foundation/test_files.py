import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import canonical_json, sha256_of, write_bytes, write_json

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def test_a_file_is_replaced_whole_and_no_sibling_is_left(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_missing_is_told_with_its_path_and_exit_code_4(tmp_path):
    with pytest.raises(UnavailableError) as caught:
        write_bytes(tmp_path / "gone" / "a.txt", b"x")
    problem = caught.value.problems[0]
    assert problem.message.startswith("cannot write: No such file")
    assert problem.at == str(tmp_path / "gone" / "a.txt")
    assert "finished work is kept" in problem.do


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"  # without it the process dies instead of seeing EFBIG
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from kdpipe.foundation.files import write_bytes\n"
        "write_bytes(Path(sys.argv[1]), b'x' * 100_000)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "UnavailableError" in result.stderr
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_the_digest_is_that_of_the_whole_content(tmp_path):
    content = os.urandom(3_000_000)  # several pieces
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), JSON))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_numbers_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()
