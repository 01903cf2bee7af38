"""A manifest leaves out and relabels, changes nothing else, and is refused where it does not belong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data.cleaning import Decision, Manifest, Wanted, cleaned_digest, decided, kept_and_labels, read_manifest, write_manifest
from kdpipe.tasks.data.inspection.findings import Finding, Inspection, Sample
from kdpipe.tasks.image_classification import ImageClassification

DIGEST = "d" * 64


def sample(split, index, label=0):
    return Sample(split=split, index=index, at=f"{split}/{index}", label=label)


def finding(kind, *samples, **more):
    return Finding(kind=kind, severity="warning", what="what", do="do", samples=samples, **more)


def inspection(*findings):
    counts = {"train": (5, 5), "validation": (2, 2), "test": (2, 2)}
    return Inspection(name="toy", digest=DIGEST, classes=("a", "b"), shape=(1, 8, 8), counts=counts, findings=findings)


def told(manifest):
    return [(it.split, it.index, it.label, it.why, it.source) for it in manifest.decisions]


def suspect(split, index, margin):
    return finding("suspected-label", sample(split, index), score=margin, suggested=1, confidence=0.9)


ALL = inspection(
    finding("unreadable", sample("test", 1)),
    finding("leak", sample("train", 0), sample("train", 4), sample("test", 0)),
    finding("leak", sample("validation", 1), sample("test", 2)),
    finding("duplicate", sample("train", 1), sample("train", 2), sample("train", 3)),
    finding("duplicate", sample("validation", 2), sample("validation", 3)),
    finding("contradiction", sample("train", 5), sample("train", 6, 1)),
    finding("contradiction", sample("train", 7), sample("test", 3, 1)),
    finding("near-duplicate", sample("train", 8), sample("train", 9)),
    finding("outlier", sample("train", 9)),
    suspect("train", 8, 0.7),
    suspect("train", 0, 0.6),
    suspect("train", 9, 0.2),
    suspect("test", 2, 0.8),
)
SAFE = [
    ("train", 0, None, "leak", "safe"),
    ("train", 2, None, "duplicate", "safe"),
    ("train", 3, None, "duplicate", "safe"),
    ("train", 4, None, "leak", "safe"),
    ("train", 7, None, "contradiction", "safe"),
    ("test", 1, None, "unreadable", "safe"),
]


def test_by_default_only_what_is_safe_is_decided_and_test_loses_only_what_cannot_be_read():
    manifest = decided(ALL, Wanted())

    assert told(manifest) == SAFE
    assert manifest.digest == DIGEST
    assert manifest.options == ()


def test_suspected_labels_are_dropped_only_where_and_as_surely_as_was_said():
    dropped = decided(ALL, Wanted("drop", least_margin=0.5))
    both = decided(ALL, Wanted("drop", splits=("train", "test")))

    assert [it for it in told(dropped) if it[4] == "--drop-suspected"] == [
        ("train", 5, None, "contradiction", "--drop-suspected"),
        ("train", 6, None, "contradiction", "--drop-suspected"),
        ("train", 8, None, "suspected-label", "--drop-suspected"),
    ]
    assert dropped.options == ("--drop-suspected", "--split train", "--least-margin 0.5")
    assert ("test", 2, None, "suspected-label", "--drop-suspected") in told(both)


def test_relabelling_gives_the_suggested_label_and_leaves_dropped_samples_dropped():
    relabelled = decided(ALL, Wanted("relabel", least_margin=0.1))

    assert [it for it in told(relabelled) if it[2] is not None] == [
        ("train", 8, 1, "suspected-label", "--relabel"),
        ("train", 9, 1, "suspected-label", "--relabel"),
    ]
    assert ("train", 0, None, "leak", "safe") in told(relabelled)


@settings(max_examples=25, deadline=None)
@given(st.permutations(list(range(len(ALL.findings)))))
def test_the_order_of_the_findings_does_not_matter_for_what_is_left_out(order):
    mixed = ALL.model_copy(update={"findings": tuple(ALL.findings[k] for k in order)})

    assert {it[:3] for it in told(decided(mixed, Wanted("drop")))} == {it[:3] for it in told(decided(ALL, Wanted("drop")))}


def test_kept_rows_and_labels_follow_the_decisions():
    manifest = decided(ALL, Wanted("relabel", least_margin=0.1))

    kept, labels = kept_and_labels(manifest, "train", np.zeros(10, np.int64))

    assert kept.tolist() == [1, 5, 6, 8, 9]
    assert labels.tolist() == [0, 0, 0, 1, 1]


def test_the_digest_follows_from_decisions_and_not_from_reasons_or_their_order():
    manifest = decided(ALL, Wanted())
    reasons = manifest.model_copy(update={"decisions": tuple(it.model_copy(update={"source": "a person", "at": "x"}) for it in manifest.decisions[::-1])})
    fewer = manifest.model_copy(update={"decisions": manifest.decisions[1:]})

    assert cleaned_digest(DIGEST, manifest) == cleaned_digest(DIGEST, reasons)
    assert len({DIGEST, cleaned_digest(DIGEST, manifest), cleaned_digest(DIGEST, fewer), cleaned_digest("e" * 64, manifest)}) == 4
    assert cleaned_digest(DIGEST, Manifest(name="toy", digest=DIGEST)) == DIGEST


def test_a_manifest_survives_the_disk(tmp_path):
    manifest = decided(ALL, Wanted("relabel"))
    write_manifest(manifest, tmp_path / "cleaned.json")

    assert read_manifest(tmp_path / "cleaned.json") == manifest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "this is no JSON file"),
        ("{}", "this is no manifest of cleaned data: name: Field required"),
        ('{"name": "x", "digest": "y", "decisions": [{"split": "trial"}]}', "this is no manifest of cleaned data: decisions.0.split"),
    ],
    ids=["missing", "broken", "empty", "other"],
)
def test_what_is_no_manifest_is_refused(content, message, tmp_path, problem):
    path = tmp_path / "cleaned.json"
    if content is not None:
        path.write_text(content)

    told = problem(lambda: read_manifest(path))

    assert told.message.startswith(message)
    assert told.at == str(path)
    assert "kdpipe data clean" in told.do


@pytest.fixture
def folder_project(class_folders, tmp_path):
    """A project folder with a folder of images, one of which is broken and one of another size; the task, and the broken one's place."""
    folder = class_folders("animals", {"ant": 20, "bee": 20})
    (folder / "ant" / "0003.png").write_bytes(b"no image")
    return tmp_path, ImageClassification(data="animals")


def manifest_for(task, project, *decisions, digest=None):
    found = task.uncleaned(project, 0)
    write_manifest(Manifest(name="x", digest=digest or found.digest, decisions=decisions), project / "cleaned.json")
    return found


def place_of(found, name):
    return next((split, k) for split, rows in found.splits.items() for k, row in enumerate(rows.rows) if rows.samples.names[row] == name)


def test_a_broken_file_stops_a_build_until_a_manifest_leaves_it_out(folder_project, problem):
    project, task = folder_project
    assert problem(lambda: task.load(project, 0)).message == "not a readable PNG, JPEG or BMP image"
    split, index = place_of(task.uncleaned(project, 0), "ant/0003.png")
    found = manifest_for(task, project, Decision(split=split, index=index, at="x", why="unreadable", source="safe"))

    data = task.model_copy(update={"cleaned": "cleaned.json"}).load(project, 0)

    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 39
    assert data.digest != found.digest
    assert all(np.isfinite(data.mean))


def test_the_splits_stay_what_they_were(folder_project):
    project, task = folder_project
    before = task.uncleaned(project, 0)
    split, index = place_of(before, "ant/0003.png")
    manifest_for(task, project, Decision(split=split, index=index, at="x", why="unreadable", source="safe"))

    data = task.model_copy(update={"cleaned": "cleaned.json"}).load(project, 0)

    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        rows = before.splits[name].rows
        assert part.rows.tolist() == (np.delete(rows, index) if name == split else rows).tolist()


def test_a_manifest_for_other_data_is_refused(folder_project, problem):
    project, task = folder_project
    found = manifest_for(task, project, digest=DIGEST)

    told = problem(lambda: task.model_copy(update={"cleaned": "cleaned.json"}).load(project, 0))

    assert told.message == f"the manifest is for other data: 'x' of the digest dddddddddddd…, the present data have {found.digest[:12]}…"
    assert told.at == str(project / "cleaned.json")
    assert told.do == "write it again for the present data with: kdpipe data clean; images, labels, seed and shares of the splits all count"


@pytest.mark.parametrize(
    ("decision", "message"),
    [({"index": 999}, "there is no sample 999 in train"), ({"index": 0, "label": 7}, "label 7 of sample 0 in train: there are 2 classes")],
    ids=["sample", "label"],
)
def test_decisions_on_what_is_not_there_are_refused(decision, message, folder_project, problem):
    project, task = folder_project
    manifest_for(task, project, Decision(split="train", at="x", why="leak", source="a person", **decision))

    assert problem(lambda: task.model_copy(update={"cleaned": "cleaned.json"}).load(project, 0)).message == message


def test_what_is_not_left_out_must_be_usable(npz, tmp_path, problem):
    images = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)
    images[7, 0, 0] = np.nan
    npz(images=images, labels=np.arange(60) % 2)
    task = ImageClassification(data="data.npz")
    found = task.uncleaned(tmp_path, 0)
    where = next((name, int(np.flatnonzero(split.rows == 7)[0])) for name, split in found.splits.items() if 7 in split.rows)
    cleaned = task.model_copy(update={"cleaned": "cleaned.json"})

    manifest_for(task, tmp_path)
    assert "NaN" in problem(lambda: cleaned.load(tmp_path, 0)).message
    manifest_for(task, tmp_path, Decision(split=where[0], index=where[1], at="x", why="not-finite", source="safe"))
    data = cleaned.load(tmp_path, 0)
    assert all(np.isfinite(data.mean))


def test_an_empty_manifest_changes_no_digest(npz, arrays, tmp_path):
    images, labels = arrays(60)
    npz(images=images, labels=labels)
    task = ImageClassification(data="data.npz")
    manifest_for(task, tmp_path)

    assert task.model_copy(update={"cleaned": "cleaned.json"}).load(tmp_path, 0).digest == task.load(tmp_path, 0).digest


def test_a_class_that_loses_its_last_sample_of_a_split_is_refused(npz, arrays, tmp_path, problem):
    images, labels = arrays(60)
    npz(images=images, labels=labels)
    task = ImageClassification(data="data.npz")
    found = task.uncleaned(tmp_path, 0)
    gone = np.flatnonzero(found.splits["validation"].labels == 1)
    manifest_for(task, tmp_path, *(Decision(split="validation", index=int(k), at="x", why="leak", source="a person") for k in gone))

    told = problem(lambda: task.model_copy(update={"cleaned": "cleaned.json"}).load(tmp_path, 0))

    assert told.message == "the validation split has no sample of 1 of 3 classes: '1'"


def test_splits_of_your_own_are_cleaned_too(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "from pathlib import Path\n"
        "from kdpipe.tasks.image_classification import ImageClassification\n"
        "def splits():\n    return ImageClassification(data='digits').load(Path(), 0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = ImageClassification(data="own_data:splits")
    manifest_for(task, tmp_path, Decision(split="train", index=2, at="x", label=5, why="suspected-label", source="a person"))
    before = task.load(tmp_path, 0)

    data = task.model_copy(update={"cleaned": "cleaned.json"}).load(tmp_path, 0)

    assert len(data.train) == len(before.train)
    assert data.train.labels[2] == 5
    assert np.array_equal(data.train.read(np.array([2])), before.train.read(np.array([2])))
    assert data.digest != before.digest
    assert json.loads((tmp_path / "cleaned.json").read_text())["decisions"][0]["source"] == "a person"
