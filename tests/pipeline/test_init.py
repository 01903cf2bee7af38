from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.config import assemble
from kdpipe.pipeline.init import initialise
from kdpipe.pipeline.stages import load_stages
from kdpipe.pipeline.toml_source import read_toml


def test_without_data_the_digits_are_taken_and_it_says_why(tmp_path: Path) -> None:
    written = initialise(tmp_path / "new")
    assert written.path == tmp_path / "new" / "kdpipe.toml"
    assert written.choices[0] == ("data digits", "none was named, and these come with kdpipe; 10 classes, 8×8 grey, 1079 / 179 / 539 train / validation / test")
    assert [choice for choice, _ in written.choices[1:4]] == [
        "teacher resnet-20, student resnet-8",
        "15 epochs for the teacher, 30 for the student",
        "epsilon 0.1",
    ]


def test_what_is_written_is_a_configuration_without_a_mistake(tmp_path: Path) -> None:
    source = read_toml(initialise(tmp_path).path)
    config = assemble(tmp_path, source, load_stages(), ())
    assert "\nthreads = 1 " in (tmp_path / "kdpipe.toml").read_text()
    assert list(config.targets) == ["cpu", "arm"]
    assert config.prunes
    assert config.sections["teacher"].objective.attack.epsilon == config.sections["distill"].objective.attack.epsilon == 0.1


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "kdpipe.toml").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        initialise(tmp_path)
    (problem,) = caught.value.problems
    assert problem.message == "kdpipe.toml exists already; it is not overwritten"
    assert problem.at == str(tmp_path / "kdpipe.toml")
    assert problem.do == "edit it, or remove it first"
    assert (tmp_path / "kdpipe.toml").read_text() == "mine"


def test_choices_follow_from_what_the_data_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for label in ("ant", "cat"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    written = initialise(Path("project"), data="data")
    told = dict(written.choices)
    assert told[f"data {tmp_path / 'data'}"].startswith("2 classes, 32×32 colour, ")
    assert told["epsilon 0.0314"] == "colour images: 8/255"
    assert "threads" not in written.path.read_text()
    assert f'data = "{tmp_path / "data"}"' in written.path.read_text()


def test_data_inside_the_project_is_named_by_its_relative_path(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    np.savez(tmp_path / "digits" / "set.npz", images=np.zeros((60, 8, 8), np.uint8) + np.arange(60, dtype=np.uint8)[:, None, None], labels=np.arange(60) % 2)
    assert 'data = "digits/set.npz"' in initialise(tmp_path, data=str(tmp_path / "digits" / "set.npz")).path.read_text()


@pytest.mark.parametrize(("arguments", "at"), [({"data": "nowhere.npz"}, "nowhere.npz"), ({"task": "image-clasification"}, "--task")], ids=["data", "task"])
def test_what_cannot_be_used_writes_nothing(tmp_path: Path, arguments: dict[str, str], at: str) -> None:
    with pytest.raises(ConfigError) as caught:
        initialise(tmp_path, **arguments)
    (problem,) = caught.value.problems
    assert at in str(problem.at)
    assert problem.do
    assert not (tmp_path / "kdpipe.toml").exists()
    assert list(tmp_path.iterdir()) == []
