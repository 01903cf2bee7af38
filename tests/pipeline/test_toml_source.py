import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.toml_source import KeyPath, parse_toml, read_toml

EVERYTHING = '''# a comment with = and [brackets]
title = "x"
a.b.c = 1
a."d.e" = 'quoted # no comment'
inline = { first = 1, second.deep = [1, { third = "}" }] }

[table] # comment
multi = """
[not.a.header]
x = 1 \\"\\"\\" ""
"""
literal = \'\'\'
y = 2\'\'\'
list = [
  "one", # comment, with commas ]
  # nothing
  [2, 3],
]
after = 2024-01-02 03:04:05

[[rows]]
name = "first"
[rows.sub]
key = 1
[[rows]]
name = "second"
[rows.sub]
key = 2
[[rows.items]]
z = 1

[deep.down]
k = 1
[deep]
other = 1
'''


def _paths(value: Any, head: KeyPath = ()) -> list[KeyPath]:
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    return [path for key, child in children for path in [(*head, key), *_paths(child, (*head, key))]]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("a", "b", "c"), 3),
        (("a", "d.e"), 4),
        (("inline", "second", "deep", 1, "third"), 5),
        (("table",), 7),
        (("table", "multi"), 8),
        (("table", "literal"), 12),
        (("table", "list", 0), 15),
        (("table", "list", 1), 17),
        (("table", "list", 1, 1), 17),
        (("table", "after"), 19),
        (("rows", 0, "sub", "key"), 24),
        (("rows", 1), 25),
        (("rows", 1, "name"), 26),
        (("rows", 1, "sub", "key"), 28),
        (("rows", 1, "items", 0, "z"), 30),
        (("deep", "down", "k"), 33),
        (("deep",), 34),
    ],
    ids=str,
)
def test_a_key_path_has_the_line_on_which_it_stands(path: KeyPath, line: int) -> None:
    assert parse_toml(EVERYTHING, "kdpipe.toml").lines[path] == line


def test_every_path_of_the_parsed_file_has_a_line_and_no_other_has() -> None:
    source = parse_toml(EVERYTHING, "kdpipe.toml")
    assert set(source.lines) == set(_paths(tomllib.loads(EVERYTHING)))
    assert source.values["table"]["after"] == datetime.datetime(2024, 1, 2, 3, 4, 5)


def test_windows_line_ends_do_not_shift_the_lines() -> None:
    text = 'a = """\nx\n"""\nb = 1\n'
    assert parse_toml(text.replace("\n", "\r\n"), "t").lines == parse_toml(text, "t").lines == {("a",): 1, ("b",): 4}


def test_a_path_that_was_not_written_is_at_its_parent() -> None:
    source = parse_toml("[a]\nb = 1\n", "kdpipe.toml")
    assert source.at(("a", "missing", "deep")) == "kdpipe.toml:1"
    assert source.at(("other",)) == "kdpipe.toml"


_scalars = st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(['"a"', "'#'", '"]}\\""', '"""\nk = 1\n"""', "'''\n[t]\n'''", "1979-05-27", "inf"]))
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def _written(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_written(item)}, # ]\n" for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["[{}]", "[[{}]]", "{}.x"]), _values), max_size=8))
def test_whatever_is_written_the_lines_cover_exactly_the_paths_and_show_the_key(parts: list[tuple[str, Any]]) -> None:
    text = ""
    for number, (form, value) in enumerate(parts):
        name = f"key{number}"
        text += f"\n{form.format(name)}\nvalue{number} = {_written(value)}\n" if "[" in form else f"{form.format(name)} = {_written(value)}\n"
    source = parse_toml(text, "t")
    assert set(source.lines) == set(_paths(tomllib.loads(text)))
    rows = text.split("\n")
    for path, line in source.lines.items():
        if isinstance(path[-1], str):
            assert path[-1] in rows[line - 1]


def test_a_syntax_error_names_its_line_and_tells_of_missing_quotes() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml('[project]\nname = "a"\n[task]\nkind = image-classification\n', "kdpipe.toml")
    (problem,) = caught.value.problems
    assert problem.message == "not valid TOML: Invalid value"
    assert problem.at == "kdpipe.toml:4"
    assert problem.do == 'put the text in quotes: kind = "image-classification"'


def test_an_unfinished_file_is_reported_at_its_last_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml("a = 1\nb = [1,\n\n", "kdpipe.toml")
    (problem,) = caught.value.problems
    assert problem.at == "kdpipe.toml:2"
    assert problem.do == "mend the line; the syntax: https://toml.io"


def test_a_file_that_is_not_utf8_names_byte_and_line(tmp_path: Path) -> None:
    path = tmp_path / "kdpipe.toml"
    path.write_bytes(b'a = 1\nb = "\xff"\n')
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    (problem,) = caught.value.problems
    assert problem.message == "byte 0xff is not UTF-8"
    assert problem.at == "kdpipe.toml:2"
    assert problem.do == "save the file as UTF-8"


def test_set_takes_toml_values_and_plain_text_and_is_named_as_the_place() -> None:
    settings = ["distill.epochs=3", "distill.objective=rslad", 'targets.cpu.x=[1, "a"]', "project.name=my net"]
    source = parse_toml("[distill]\nepochs = 10\n", "kdpipe.toml").overridden(settings)
    assert source.values == {"distill": {"epochs": 3, "objective": "rslad"}, "targets": {"cpu": {"x": [1, "a"]}}, "project": {"name": "my net"}}
    assert source.at(("distill", "epochs")) == "--set distill.epochs=3"
    assert source.at(("distill",)) == "kdpipe.toml:1"


def test_set_leaves_the_source_it_came_from_alone() -> None:
    source = parse_toml("[distill]\nepochs = 10\n", "kdpipe.toml")
    source.overridden(["distill.epochs=3"])
    assert source.values == {"distill": {"epochs": 10}}


@pytest.mark.parametrize("text", ["distill.epochs", "=3", "a..b=3", "a b=3", "a\nb=1"], ids=repr)
def test_a_set_that_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml("", "kdpipe.toml").overridden([text])
    (problem,) = caught.value.problems
    assert problem.message == f"{text!r} is not of the form key.path=value"
    assert problem.at == f"--set {text}"
    assert problem.do == "for example --set distill.epochs=3"


def test_a_set_through_a_value_is_refused_and_all_refusals_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml("[distill]\nepochs = 10\n", "kdpipe.toml").overridden(["distill.epochs.x=3", "nothing"])
    first, second = caught.value.problems
    assert first.message == "'distill.epochs' is a value, not a table"
    assert first.do == "set it as a whole: --set distill.epochs=…"
    assert second.at == "--set nothing"


def test_the_mark_that_windows_editors_put_in_front_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "kdpipe.toml"
    path.write_bytes(b'\xef\xbb\xbf[task]\r\ndata = "digits"\r\n')
    source = read_toml(path)
    assert source.values == {"task": {"data": "digits"}}
    assert source.at(("task", "data")) == "kdpipe.toml:2"


@pytest.mark.parametrize("text", ["x = " + "[" * 9000 + "]" * 9000, "x = " + "9" * 5000], ids=["brackets", "digits"])
def test_what_tomllib_itself_chokes_on_is_the_users_mistake(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "kdpipe.toml")
    (problem,) = caught.value.problems
    assert problem.message == "not usable TOML: a number of thousands of digits, or thousands of nested brackets"
    assert (problem.at, problem.do) == ("kdpipe.toml", "write it plainer")


def test_a_file_too_large_for_a_configuration_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "kdpipe.toml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    (problem,) = caught.value.problems
    assert problem.message == "the file has 100.0 MB, a configuration has at most 1"
    assert (problem.at, problem.do) == (str(path), "check that it is the one")
