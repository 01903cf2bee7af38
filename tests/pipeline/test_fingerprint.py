from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.pipeline.fingerprint import code_digests, differences, fingerprint, present, references, tool_versions, with_contents


def test_a_fingerprint_is_a_full_sha256_and_order_of_keys_does_not_count() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len(fingerprint({})) == 64
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=3), json_values, max_size=3), st.dictionaries(st.text(min_size=1, max_size=3), json_values, max_size=3))
def test_different_identities_have_different_fingerprints_and_a_told_difference(old: dict[str, object], new: dict[str, object]) -> None:
    told = differences({"config": old}, {"config": new}, "teacher")
    assert (fingerprint({"config": old}) == fingerprint({"config": new})) == (told == [])


def test_a_setting_that_names_a_file_counts_by_content() -> None:
    config = {"weights": "a/b.safetensors", "epochs": 3}
    assert with_contents(config, {"weights": "12ab"}) == {"weights": "sha256:12ab", "epochs": 3}
    assert with_contents(config, {"weights/network.json": "1", "weights/w": "2"}) == {"weights": {"network.json": "sha256:1", "w": "sha256:2"}, "epochs": 3}
    assert config["weights"] == "a/b.safetensors"


def test_a_key_that_nobody_wrote_is_no_part_of_an_identity() -> None:
    written = {"epochs": 3, "attack": {"steps": 10, "step_size": None}, "teachers": [{"gate": None, "weight": 0.5}], "clip_norm": None}
    assert present(written) == {"epochs": 3, "attack": {"steps": 10}, "teachers": [{"weight": 0.5}]}


def test_tools_have_their_installed_version_and_missing_ones_none() -> None:
    versions = tool_versions(["pydantic", "no-such-distribution"])
    assert versions["no-such-distribution"] is None
    assert versions["pydantic"]


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ({"config": {"epochs": 14, "attack": {"epsilon": 0.1}}}, ["distill.epochs 12 → 14"]),
        ({"config": {"epochs": 12, "attack": {"epsilon": 0.2}}}, ["distill.attack.epsilon 0.1 → 0.2"]),
        ({"config": {"epochs": 12, "attack": {"epsilon": 0.1}, "weights": "sha256:ab"}}, ["distill.weights: the file changed"]),
        ({"inputs": {"teacher": "22"}}, ["input teacher changed"]),
        ({"data": "new"}, ["data changed"]),
        ({"tools": {"torch": "2.14"}}, ["torch 2.13 → 2.14"]),
        ({"version": 2}, ["kdpipe's distill changed"]),
        ({"seed": 1}, ["project.seed 0 → 1"]),
        ({"threads": 4}, ["project.threads 2 → 4"]),
        ({"code": {"nets": "b"}}, ["code of nets changed"]),
        ({"profile": {"opset": 18}}, ["profile.opset 17 → 18"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_difference_is_told_in_the_users_words(new: dict[str, object], told: list[str]) -> None:
    old = {
        "config": {"epochs": 12, "attack": {"epsilon": 0.1}},
        "inputs": {"teacher": "11"},
        "data": "old",
        "tools": {"torch": "2.13"},
        "version": 1,
        "seed": 0,
        "threads": 2,
        "code": {"nets": "a"},
        "profile": {"opset": 17},
    }
    assert differences(old, {**old, **new}, "distill") == told


def test_references_are_found_anywhere_and_other_colons_are_none() -> None:
    value = {"network": "nets.small:Net", "deep": [{"x": "a:b"}], "text": "see: this", "url": "http://x", "path": "C:\\x"}
    assert sorted(references(value)) == ["a:b", "nets.small:Net"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text("import blocks\nfrom os import path\n\ndef net(): ...\n")
    (tmp_path / "blocks.py").write_text("from layers.conv import c\n")
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "conv.py").write_text("c = 1\n")
    (tmp_path / "layers" / "other.py").write_text("d = 1\n")
    (tmp_path / "unrelated.py").write_text("e = 1\n")
    return tmp_path


@pytest.mark.parametrize("path", ["nets.py", "blocks.py", "layers/conv.py", "layers/other.py"])
def test_a_change_of_the_code_or_of_what_it_imports_from_the_project_counts(project: Path, path: str) -> None:
    before = code_digests({"network": "nets:net"}, project)
    assert set(before) == {"nets", "blocks", "layers"}
    (project / path).write_text((project / path).read_text() + "# changed\n")
    assert code_digests({"network": "nets:net"}, project) != before


def test_other_code_does_not_count_nor_does_where_the_project_lies(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = code_digests("nets:net", project)
    (project / "unrelated.py").write_text("e = 2\n")
    assert code_digests("nets:net", project) == before
    moved = tmp_path_factory.mktemp("moved") / "project"
    project.rename(moved)
    assert code_digests("nets:net", moved) == before


def test_an_installed_package_counts_as_a_whole_and_kdpipe_by_its_versions() -> None:
    assert set(code_digests(["filelock:FileLock", "kdpipe.tasks.networks.resnet:resnet"], Path("/nowhere"))) == {"filelock"}


def test_code_that_cannot_be_found_or_parsed_is_left_for_the_import_to_tell(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    assert set(code_digests(["broken:net", "nowhere_at_all:net"], tmp_path)) == {"broken"}
