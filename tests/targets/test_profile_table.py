from pathlib import Path

from kdpipe.targets.lint.rules import rules_table
from kdpipe.targets.profile import load_profile, profile_names
from kdpipe.targets.profile_table import markdown_table, scheme_in_words

DOCUMENT = Path(__file__).parents[2] / "docs" / "targets.md"


def test_the_documented_table_is_the_generated_one():
    # anew: python -c "from kdpipe.targets.profile_table import markdown_table; print(markdown_table())"
    text = DOCUMENT.read_text()
    begin, end = text.index("a test compares -->\n") + len("a test compares -->\n"), text.index("<!-- end of the generated table -->")
    assert text[begin:end] == markdown_table()


def test_the_documented_rules_are_the_generated_ones():
    # anew: python -c "from kdpipe.targets.lint.rules import rules_table; print(rules_table())"
    text = DOCUMENT.read_text()
    begin, end = text.index("by kdpipe.targets.lint.rules; a test compares -->\n"), text.index("<!-- end of the generated rules -->")
    assert text[begin:end] == "by kdpipe.targets.lint.rules; a test compares -->\n" + rules_table()


def test_the_table_has_a_column_for_each_profile():
    header = markdown_table().splitlines()[0]
    assert [cell.strip(" `") for cell in header.split("|")[2:-1]] == profile_names()


def test_a_scheme_reads_in_words():
    assert scheme_in_words(load_profile("cpu", at="test").scheme) == "u8 activations; 7-bit symmetric weights per channel"
    assert scheme_in_words(load_profile("gpu", at="test").scheme) == "s8 activations, zero point 0; 8-bit symmetric weights per channel"


def test_the_documented_profile_of_one_s_own_is_valid(tmp_path):
    block = DOCUMENT.read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "board.toml").write_text(block)
    assert load_profile(tmp_path / "board.toml", at="test").bench.seconds == 10.0
