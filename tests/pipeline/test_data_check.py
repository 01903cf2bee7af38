"""`kdpipe data check` and `kdpipe data clean`, on a project with planted faults."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.data_check import check, clean
from kdpipe.pipeline.data_commands import data
from kdpipe.pipeline.kept_check import kept_path, known_check
from kdpipe.tasks.data import digits
from kdpipe.tasks.data.cleaning import Decision, Wanted, read_manifest, write_manifest
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.image_classification import ImageClassification

TOML = '[project]\nname = "planted"\n[task]\ndata = "data.npz"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """600 real digits with official splits; two copies in train, a leak, a NaN, and ten wrong labels."""
    source = digits.load().train
    images, labels = source.samples.pixels(np.arange(600)).copy(), source.labels[:600].copy()
    images[5], labels[5] = images[4], labels[4]
    images[10], labels[10] = images[420], labels[420]
    images[20, 0, 0, 0] = np.nan
    labels[100:110] = (labels[100:110] + 3) % 10
    parts = {"train": slice(0, 400), "val": slice(400, 480), "test": slice(480, 600)}
    np.savez(
        tmp_path / "data.npz", **{f"{name}_{what}": array[rows] for name, rows in parts.items() for what, array in (("images", images), ("labels", labels))}
    )
    (tmp_path / "kdpipe.toml").write_text(TOML)
    return tmp_path


def _use(project: Path) -> None:
    (project / "kdpipe.toml").write_text(TOML + 'cleaned = "cleaned.json"\n')


def _digest(project: Path, **more: str) -> str:
    return ImageClassification.model_validate({"data": "data.npz", **more}).load(project, 0).digest


def test_a_check_writes_a_page_keeps_itself_and_says_what_is_serious(project: Path, kdpipe: Any) -> None:
    told = kdpipe("data", "check", "--json", "--no-labels", folder=project)

    assert told.returncode == 3, told.stderr
    found = json.loads(told.stdout)
    assert found["exit_code"] == 3
    kinds = {finding["kind"]: finding for finding in found["findings"]}
    assert kinds["leak"]["severity"] == "serious"
    assert {sample["at"] for sample in kinds["leak"]["samples"]} == {"image 10 of data.npz, train", "image 20 of data.npz, validation"}
    assert [sample["at"] for sample in kinds["not-finite"]["samples"]] == ["image 20 of data.npz, train"]
    assert found["skipped"] == ["labels were not checked"]
    page = Path(found["report"])
    assert page == project / "dist" / "planted" / "data-report.html"
    assert "2 serious findings" in page.read_text()
    kept = known_check(project, found["digest"])
    assert kept is not None
    assert len(kept.findings) == len(found["findings"])


def test_data_without_a_project_are_checked_and_nothing_is_kept(project: Path) -> None:
    (project / "kdpipe.toml").unlink()

    result = check(project, data="data.npz", labels=False)

    assert result.sheet == project / "data-report.html"
    assert result.kept is None
    assert not (project / ".kdpipe").exists()


def test_a_cleaning_leaves_out_what_is_safe_and_the_check_after_it_is_content(project: Path) -> None:
    with pytest.raises(ConfigError, match="NaN"):
        _digest(project)
    original = (project / "data.npz").read_bytes()

    result = clean(project)
    _use(project)
    after = check(project, labels=False)

    assert sorted(it.at for it in result.manifest.decisions) == [
        "image 10 of data.npz, train",
        "image 20 of data.npz, train",
        "image 5 of data.npz, train",
    ]
    assert result.digest == _digest(project, cleaned="cleaned.json") == after.inspection.digest
    assert not after.inspection.serious
    assert after.inspection.of("duplicate", "leak", "not-finite") == ()
    assert sum(after.inspection.counts["train"]) == 397
    assert (project / "data.npz").read_bytes() == original


def test_cleaning_twice_is_cleaning_once(project: Path) -> None:
    first = clean(project, wanted=Wanted("drop"))
    written = first.path.read_bytes()
    _use(project)

    second = clean(project, wanted=Wanted("drop"))

    assert second.path.read_bytes() == written
    assert second.in_use
    assert not first.in_use


def test_suspected_labels_are_dropped_from_training_alone_when_asked(project: Path) -> None:
    result = clean(project, wanted=Wanted("drop"))

    suspected = [it for it in result.manifest.decisions if it.why == "suspected-label"]
    planted = {f"image {row} of data.npz, train" for row in range(100, 110)}
    assert {it.split for it in suspected} == {"train"}
    assert len({it.at for it in suspected} & planted) >= 8
    assert len(suspected) <= 20


def test_undo_gives_the_digest_of_before(project: Path) -> None:
    with np.load(project / "data.npz") as file:
        images = dict(file)
    images["train_images"] = np.nan_to_num(images["train_images"])
    np.savez(project / "data.npz", **images)
    before = _digest(project)
    clean(project)
    _use(project)
    assert _digest(project, cleaned="cleaned.json") != before

    undone = clean(project, undo=True)

    assert undone.digest == before == _digest(project, cleaned="cleaned.json")


def test_the_order_of_the_samples_does_not_change_what_stays(project: Path) -> None:
    with np.load(project / "data.npz") as file:
        arrays = dict(file)
    clean(project, wanted=Wanted("drop"))
    straight = ImageClassification.model_validate({"data": "data.npz", "cleaned": "cleaned.json"}).load(project, 0)
    order = np.random.default_rng(0).permutation(400)
    arrays["train_images"], arrays["train_labels"] = arrays["train_images"][order], arrays["train_labels"][order]
    np.savez(project / "data.npz", **arrays)
    clean(project, wanted=Wanted("drop"))
    mixed = ImageClassification.model_validate({"data": "data.npz", "cleaned": "cleaned.json"}).load(project, 0)

    def content(made: DataSplits) -> list[tuple[bytes, int]]:
        return sorted((made.train.read(np.array([k])).tobytes(), int(made.train.labels[k])) for k in range(len(made.train)))

    assert content(mixed) == content(straight)


def test_what_a_person_decided_stays_when_the_manifest_is_written_again(project: Path) -> None:
    result = clean(project)
    own = Decision(split="test", index=3, at="by hand", label=1, why="suspected-label", source="Ada looked at it")
    write_manifest(result.manifest.model_copy(update={"decisions": (*result.manifest.decisions, own)}), result.path)

    again = clean(project)

    assert own in again.manifest.decisions
    assert read_manifest(again.path) == again.manifest
    assert clean(project, undo=True).manifest.decisions == ()


def test_a_dry_run_writes_no_manifest(project: Path) -> None:
    told = CliRunner().invoke(data, ["clean", "--dry-run", "--project", str(project)])

    assert told.exit_code == 0, told.exception
    assert f"would write {project / 'cleaned.json'}: 3 decisions" in told.stdout
    assert not (project / "cleaned.json").exists()


def test_a_cleaning_says_how_to_use_and_how_to_undo_it(project: Path) -> None:
    told = CliRunner().invoke(data, ["clean", "--project", str(project)])

    assert 'to use it: cleaned = "cleaned.json" in [task]; to undo it: take the line out, or kdpipe data clean --undo' in told.stdout
    assert read_manifest(project / "cleaned.json").decisions


@pytest.mark.parametrize(
    ("arguments", "message", "do"),
    [
        (["--drop-suspected", "--relabel"], "--drop-suspected and --relabel exclude each other", "choose one"),
        (["--split", "test"], "--split says where to act on suspected labels", "add --drop-suspected or --relabel"),
        (["--relabel", "--split", "tset"], "there is no split 'tset'", "splits: train, validation, test"),
    ],
    ids=["both", "split alone", "unknown split"],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], message: str, do: str, project: Path) -> None:
    told = CliRunner().invoke(data, ["clean", *arguments, "--project", str(project)])

    assert isinstance(told.exception, ConfigError)
    [problem] = told.exception.problems
    assert problem.message == message
    assert problem.do == do
    assert problem.at


def test_without_project_and_data_the_way_to_one_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(tmp_path)

    [problem] = caught.value.problems
    assert problem.message == "no kdpipe.toml here"
    assert problem.at == str(tmp_path)
    assert problem.do == "write one with: kdpipe init; or name the data: kdpipe data check --data PATH"


def test_a_kept_check_that_cannot_be_read_is_made_anew(project: Path) -> None:
    result = check(project, labels=False)
    assert result.kept == kept_path(project, result.inspection.digest)
    result.kept.write_text("{")

    assert known_check(project, result.inspection.digest) is None
    assert len(clean(project).manifest.decisions) == 3
    assert known_check(project, result.inspection.digest) == result.inspection


def test_a_cleaning_that_would_empty_a_class_is_refused(project: Path) -> None:
    result = check(project)
    assert result.kept is not None
    suspects = [it for it in result.inspection.findings if it.kind == "suspected-label"]
    digest = result.inspection.digest
    task = ImageClassification(data="data.npz").uncleaned(project, 0)
    rows = np.flatnonzero(task.splits["validation"].labels == 0)  # type: ignore[union-attr]
    doubted = tuple(
        suspects[0].model_copy(update={"samples": (suspects[0].samples[0].model_copy(update={"split": "validation", "index": int(row)}),)}) for row in rows
    )
    result.kept.write_text(result.inspection.model_copy(update={"findings": doubted}).model_dump_json())
    assert known_check(project, digest) is not None

    with pytest.raises(ConfigError) as caught:
        clean(project, wanted=Wanted("drop", splits=("validation",)))

    [problem] = caught.value.problems
    assert problem.message == "nothing of class '0' would be left in validation"
    assert problem.at == str(project / "cleaned.json")
    assert problem.do == "raise --least-margin, or leave the suspected labels: run it without --drop-suspected and --relabel"


def test_files_that_are_gone_or_of_another_size_are_found_and_left_out(tmp_path: Path) -> None:
    project, draws = tmp_path, np.random.default_rng(0)
    for label in ("ant", "bee"):
        (project / "animals" / label).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(draws.integers(0, 256, (12, 10, 3), np.uint8)).save(project / "animals" / label / f"{number:04}.png")
    (project / "animals" / "ant" / "0003.png").write_bytes(b"no image")
    (project / "animals" / "bee" / "0001.png").unlink()
    (project / "animals" / "bee" / "0001.png").symlink_to("nowhere.png")
    Image.new("RGB", (3, 5)).save(project / "animals" / "bee" / "0002.png")
    (project / "kdpipe.toml").write_text('[task]\ndata = "animals"\n')

    found = check(project, labels=False).inspection
    told = {finding.samples[0].at: finding.what for finding in found.of("unreadable")}
    clean(project)
    data = ImageClassification.model_validate({"data": "animals", "cleaned": "cleaned.json"}).load(project, 0)

    assert told == {
        "animals/ant/0003.png": "not a readable PNG, JPEG or BMP image",
        "animals/bee/0001.png": "cannot read the image: No such file or directory",
        "animals/bee/0002.png": "images of unequal size: 3x5 here, 10x12 before",
    }
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 37
