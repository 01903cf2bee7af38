import ast
import sys
from pathlib import Path

from kdpipe.targets.devices import keeper

SOURCE = Path(keeper.__file__).read_text()


def test_the_keeper_is_written_in_python_3_8_and_needs_the_standard_library_alone():
    tree = ast.parse(SOURCE, feature_version=(3, 8))
    imported = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


def test_only_names_of_files_are_stored():
    fine = ("agent.py", "0a1b.onnx", "a-b_c.npy")
    wrong = ("../agent.py", "/etc/passwd", ".part", "", "a/b", "a\0", "x" * 200)
    assert all(keeper._NAME.fullmatch(name) for name in fine)
    assert not any(keeper._NAME.fullmatch(name) for name in wrong)


def test_leftovers_are_folders_of_this_user_with_the_keeper_s_name(tmp_path):
    for name in ("kdpipe-device-old", "kdpipe-devices", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "kdpipe-device-link").symlink_to(tmp_path / "other")
    assert keeper.remove_leftovers(str(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kdpipe-device-link", "kdpipe-devices", "other"]
    assert (tmp_path / "other" / "deep").is_dir()
