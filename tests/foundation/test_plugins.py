import subprocess
import sys

import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.plugins import find, imported, names


def test_a_plug_in_is_found_by_the_name_of_its_file():
    assert find("kdpipe.stages.objectives", "kd", at="here").__name__.lower() == "kd"


def test_a_misspelt_name_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(ConfigError) as caught:
        find("kdpipe.stages.objectives", "rlsad", at="kdpipe.toml:9")
    problem = caught.value.problems[0]
    assert problem.message == "unknown name 'rlsad'"
    assert problem.at == "kdpipe.toml:9"
    assert "did you mean 'rslad'?" in problem.do
    assert "package.module:name" in problem.do


def test_listing_names_imports_none_of_them():
    script = "import sys; from kdpipe.foundation.plugins import names; assert 'kd' in names('kdpipe.stages.objectives'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_files_that_open_with_an_underscore_are_no_plug_ins():
    assert not any(name.startswith("-") for name in names("kdpipe.stages.objectives"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("json", "'json' is not of the form 'package.module:name'"),
        ("no_such_module_here:x", "cannot import 'no_such_module_here': ModuleNotFoundError"),
        ("json:lods", "module 'json' has no 'lods'"),
    ],
    ids=["no colon", "no module", "no attribute"],
)
def test_a_reference_that_leads_nowhere_says_where_it_was_written(reference, message):
    with pytest.raises(ConfigError) as caught:
        imported(reference, at="kdpipe.toml:3")
    assert caught.value.problems[0].message.startswith(message)
    assert caught.value.problems[0].at == "kdpipe.toml:3"


def test_a_module_that_fails_while_it_is_imported_is_told_with_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_user_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero"):
        imported("broken_user_module:net", at="kdpipe.toml:3")


def test_what_plug_ins_share_lies_beside_them_without_being_listed():
    assert "objective" not in names("kdpipe.stages.objectives")
