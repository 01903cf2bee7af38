"""Faults planted in real digits are found where they were planted, in whatever order the samples stand."""

import numpy as np
import pytest


def places(findings):
    return sorted(tuple((sample.split, sample.index) for sample in finding.samples) for finding in findings)


def test_copies_leaks_and_contradictions_are_told_apart(digit_arrays, inspect):
    sets = digit_arrays()
    (train, labels), (test, test_labels) = sets["train"], sets["test"]
    train[10] = train[3]
    labels[10] = labels[3]
    train[20], labels[20] = test[7], test_labels[7]
    train[31] = train[30]
    labels[31] = (labels[30] + 1) % 10
    test[41], test_labels[41] = test[40], test_labels[40]
    train[50], labels[50] = test[60], (test_labels[60] + 1) % 10

    found = inspect(sets, labels=False)

    duplicates, leaks, contradictions = found.of("duplicate"), found.of("leak"), found.of("contradiction")
    assert places(duplicates) == [(("test", 40), ("test", 41)), (("train", 3), ("train", 10))]
    assert places(leaks) == [(("train", 20), ("test", 7))]
    assert places(contradictions) == [(("train", 30), ("train", 31)), (("train", 50), ("test", 60))]
    assert [finding.severity for finding in leaks] == ["serious"]
    assert {finding.samples[-1].split: finding.severity for finding in contradictions} == {"train": "warning", "test": "serious"}
    assert leaks[0].what == "2 copies of one image stand in train and test: what is judged was seen before"
    assert leaks[0].do == "kdpipe data clean leaves out the copies in training"
    assert leaks[0].samples[0].at == "train/00020"
    assert found.serious
    assert found.findings[0].severity == "serious"  # they come first


def test_samples_that_are_no_images_are_named_with_what_is_wrong(digit_arrays, inspect):
    sets = digit_arrays()
    train = sets["train"][0]
    train[5, 0, 2, 2] = np.nan
    train[6, 0, 1] = np.inf
    train[7] *= 255
    train[8] = 0.5

    found = inspect(sets, labels=False)

    assert places(found.of("not-finite")) == [(("train", 5),), (("train", 6),)]
    assert [finding.what for finding in found.of("not-finite")] == ["1 of 64 values are NaN", "8 of 64 values are infinite"]
    [bright] = found.of("out-of-range")
    assert places([bright]) == [(("train", 7),)]
    assert bright.what == "values run from 0 to 255, outside [0, 1]"
    assert bright.do == "replace or repair it, or leave it out with kdpipe data clean: a build refuses it"
    assert places(found.of("constant")) == [(("train", 8),)]
    assert {5, 6, 7}.isdisjoint(sample.index for finding in found.of("outlier", "near-duplicate", "duplicate") for sample in finding.samples)


def test_near_copies_are_found_and_few_others_are(digit_arrays, inspect):
    sets = digit_arrays()
    train, labels = sets["train"]
    draws = np.random.default_rng(1)
    planted = [(100 + k, 200 + k) for k in range(10)]
    for original, copy in planted:
        train[copy] = np.clip(0.9 * train[original] + 0.02 + draws.normal(0, 0.01, train[0].shape), 0, 1)
        labels[copy] = labels[original]

    found = inspect(sets, labels=False).of("near-duplicate", "near-leak", "near-contradiction")

    pairs = {tuple(sorted(sample.index for sample in finding.samples)) for finding in found}
    assert pairs >= set(planted)
    assert len(pairs - set(planted)) <= 3
    assert all(finding.score >= 0.99 for finding in found)


def test_images_of_another_kind_are_outliers_and_digits_are_not(digit_arrays, inspect):
    sets = digit_arrays()
    train = sets["train"][0]
    draws = np.random.default_rng(2)
    train[17] = draws.random(train[0].shape)
    train[18] = 1 - train[18]

    found = inspect(sets, labels=False).of("outlier")

    assert {finding.samples[0].index for finding in found} >= {17, 18}
    assert len(found) <= 4
    assert found[0].score >= found[-1].score


def test_wrong_labels_are_suspected_and_the_right_one_is_suggested(digit_arrays, inspect):
    sets = digit_arrays()
    labels = sets["train"][1]
    draws = np.random.default_rng(3)
    wrong = draws.choice(900, 60, replace=False)
    true = labels.copy()
    labels[wrong] = (labels[wrong] + draws.integers(1, 10, 60)) % 10

    found = inspect(sets)

    suspects = [finding for finding in found.of("suspected-label") if finding.samples[0].split == "train"]
    indices = np.array([finding.samples[0].index for finding in suspects])
    hits = np.isin(indices, wrong)
    assert hits.mean() > 0.85
    assert hits.sum() / 60 > 0.75  # 49 of 60 here
    assert np.mean([finding.suggested == true[finding.samples[0].index] for finding in suspects]) > 0.85
    assert found.label_model.noise_rate == pytest.approx(60 / 900, abs=0.03)
    assert found.label_model.folds == 5
    assert [finding.score for finding in suspects] == sorted((finding.score for finding in suspects), reverse=True)


def test_a_wrong_label_with_a_copy_of_the_same_wrong_label_is_suspected_all_the_same(digit_arrays, inspect):
    sets = digit_arrays()
    train, labels = sets["train"]
    for copy in range(401, 409):
        train[copy] = train[400]
    labels[400:409] = (labels[400] + 4) % 10

    suspected = {finding.samples[0].index for finding in inspect(sets).of("suspected-label") if finding.samples[0].split == "train"}

    assert set(range(400, 409)) <= suspected  # copies in other folds would have vouched for the label


def test_test_labels_do_not_move_what_is_said_of_training(digit_arrays, inspect):
    sets, other = digit_arrays(), digit_arrays()
    other["test"][1][:] = np.roll(other["test"][1], 1)

    a, b = (inspect(one) for one in (sets, other))

    def of_train(found):
        return [finding for finding in found.of("suspected-label") if finding.samples[0].split == "train"]

    assert of_train(a) == of_train(b)
    assert len(b.of("suspected-label")) > 150  # the test labels are nearly all wrong there


def test_nothing_depends_on_the_order_of_the_samples(digit_arrays, inspect):
    sets = digit_arrays()
    train, labels = sets["train"]
    train[10], labels[10] = train[3], labels[3]
    labels[100:130] = (labels[100:130] + 1) % 10
    shuffled = np.random.default_rng(4).permutation(900)
    mixed = {"train": (train[shuffled], labels[shuffled]), "test": sets["test"]}

    def told(found, back=None):
        return sorted(
            (
                finding.kind,
                sorted((sample.split, int(back[sample.index]) if back is not None and sample.split == "train" else sample.index) for sample in finding.samples),
                finding.score,
                finding.suggested,
            )
            for finding in found.findings
        )

    assert told(inspect(mixed), shuffled) == told(inspect(sets))


def test_too_few_samples_of_a_class_are_a_reason_and_no_suspicion(digit_arrays, inspect):
    sets = digit_arrays()
    images, labels = sets["train"]
    keep = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) <= 4))

    found = inspect({"train": (images[keep], labels[keep])})

    assert found.label_model is None
    assert found.skipped == ("labels were not checked: a class has 4 usable training samples, 10 are needed",)


def test_clean_digits_give_nothing_serious(digit_arrays, inspect):
    found = inspect(digit_arrays())

    assert not found.serious
    assert len(found.of("suspected-label")) < 25  # of 1,200


def test_tiny_and_flat_sets_are_checked_without_a_crash(inspect):
    images = np.full((6, 1, 1, 3), 0.5, np.float32)

    found = inspect({"train": (images, [0, 1, 0, 1, 0, 1])}, classes=("a", "b"))

    assert {finding.kind for finding in found.findings} == {"constant", "contradiction"}
