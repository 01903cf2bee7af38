import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.networks import load_network, save_network
from kdpipe.foundation.quantization.engine import calibrate_, freeze, plan_of, prepare
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.robustness.corruption import SETS
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages.adversarial_files import read_adversarial
from kdpipe.stages.judged_examples import Examples
from kdpipe.stages.score import EvaluateConfig, questions_of, run
from kdpipe.stages.stage import Context, Inputs

CONFIG = EvaluateConfig(
    epsilon=0.1, attacks=("fgsm", "pgd-5"), attack_samples=90, curve_samples=40, square_queries=20, square_samples=50, corruption_samples=60
)


class Progress:
    def __init__(self):
        self.said = []

    def __call__(self, items, label, *, total=None, unit="batch"):
        return items

    def say(self, message):
        self.said.append(message)


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def data(four_digits):
    return four_digits


@pytest.fixture(scope="module")
def trained(reader_of_four):
    return reader_of_four


@pytest.fixture(scope="module")
def folders(tmp_path_factory, data, trained):
    """The artifacts of a network and of its twin."""
    root = tmp_path_factory.mktemp("networks")
    save_network(trained, root / "student")
    twin = prepare(trained.module, Scheme(), batch_norm="folded")
    calibrate_(twin, [torch.from_numpy(data.train.images)])
    frozen = freeze(twin)
    save_network(type(trained)(trained.spec.model_copy(update={"quantization": plan_of(frozen)}), frozen), root / "twin")
    return {"student": root / "student", "twin": root / "twin"}


def scored(folder: Path, data, subject_folder: Path, config: EvaluateConfig, seed: int = 0):
    folder.mkdir(exist_ok=True)
    progress = Progress()
    run(Inputs({"subject": subject_folder}, data, None), config, Context(folder, folder, seed, 1, progress))
    return Scorecard.model_validate_json((folder / "scorecard.json").read_bytes()), arrays_of(folder / "correct.npz"), progress


@pytest.fixture(scope="module")
def student(tmp_path_factory, data, folders):
    folder = tmp_path_factory.mktemp("score-student")
    return folder, *scored(folder, data, folders["student"], CONFIG.model_copy(update={"subject": "student"}))


def test_the_scorecard_says_who_was_judged_and_how(student, trained):
    _, card, correct, progress = student
    assert (card.model, card.form, card.runtime, card.split) == ("student", "network", None, "test")
    assert card.parameters == sum(parameter.numel() for parameter in trained.module.parameters())
    assert card.macs == 64 * 8 * 9 + 16 * 16 * 8 * 9 + 16 * 4  # by hand: 8x8 and 4x4 positions, 3x3 kernels, the linear layer
    assert card.size_bytes > 4 * card.parameters
    assert card.clean.n == 220
    assert card.clean.value > 85
    assert [(attack.name, attack.accuracy.n, attack.crafted_on) for attack in card.attacks] == [
        ("fgsm", 90, ("student",)),
        ("pgd-5", 90, ("student",)),
        ("square-20", 50, ("student",)),
    ]
    assert [point.epsilon for point in card.epsilon_curve] == pytest.approx([0, 0.05, 0.1, 0.2])
    assert len(card.corruptions) == 30
    assert len(card.masking) == 7
    assert card.robust.value == pytest.approx(100 * correct["robust"].mean())
    assert progress.said == [f"student: clean {card.clean.value:.1f} %, robust {card.robust.value:.1f} %, corrupted {card.corruption_mean.value:.1f} %"]


def test_the_answers_can_be_paired_because_their_indices_are_kept(student, data):
    _, _, correct, _ = student
    assert correct["clean"].shape == (220,)
    assert len(correct["indices/attack"]) == len(correct["robust"]) == len(correct["attack/pgd-5"]) == 90
    assert len(correct["indices/black-box"]) == len(correct["attack/square-20"]) == 50
    assert len(correct["indices/corruption"]) == len(correct["corruption/jpeg-5"]) == 60
    assert (correct["robust"] <= correct["clean"][correct["indices/attack"]]).all()
    shares = np.bincount(data.test.labels[correct["indices/attack"]]) / 90
    np.testing.assert_allclose(shares, np.bincount(data.test.labels) / 220, atol=0.02)


def test_the_adversarial_samples_lie_in_the_ball_and_do_what_the_scorecard_says(student, data, trained):
    folder, _, correct, _ = student
    tensors = load_file(folder / "adversarial.safetensors")
    assert sorted(tensors) == ["curve/0.05", "curve/0.1", "curve/0.2", "fgsm", "pgd-5", "square-20"]
    chosen = correct["indices/attack"]
    assert np.abs(tensors["pgd-5"] - data.test.read(chosen)).max() <= 0.1 + 1e-6
    with torch.no_grad():
        said = trained.module(torch.from_numpy(tensors["pgd-5"])).argmax(1).numpy()
    assert np.array_equal((said == data.test.labels[chosen]) & correct["clean"][chosen], correct["attack/pgd-5"])


def test_they_are_read_back_for_the_files(student, data):
    folder, _, correct, _ = student
    questions = questions_of(data.test, CONFIG, 0)
    replays, curve = read_adversarial(folder, CONFIG.methods(), questions, "student", classes=4)
    assert [(replay.name, replay.crafted_on) for replay in replays] == [("fgsm", "student"), ("pgd-5", "student")]
    assert [point.epsilon for point in curve] == [0.05, 0.1, 0.2]
    assert np.array_equal(replays[0].indices, correct["indices/attack"])


def test_the_examples_show_each_class_and_what_the_network_said(student, data, trained):
    folder, _, _, _ = student
    examples = Examples.model_validate_json((folder / "samples.json").read_bytes())
    images = load_file(folder / "samples.safetensors")
    assert examples.labels == (0, 1, 2, 3)
    assert examples.attack == "pgd-5 on student"
    assert (
        set(images)
        == set(examples.answers)
        == {"clean", "adversarial", *(f"corrupted/{name}" for name in ("gaussian-noise", "gaussian-blur", "contrast", "brightness", "pixelate", "jpeg"))}
    )
    assert np.array_equal(images["clean"], data.test.images[list(examples.indices)])
    for version, x in images.items():
        with torch.no_grad():
            probabilities = trained.module(torch.from_numpy(x)).softmax(1)
        assert [answer.label for answer in examples.answers[version]] == probabilities.argmax(1).tolist()
        assert [answer.confidence for answer in examples.answers[version]] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_the_subject_is_not_changed(tmp_path, data, folders, student):
    before = {path.name: path.read_bytes() for path in folders["student"].iterdir()}
    scored(tmp_path, data, folders["student"], CONFIG.model_copy(update={"subject": "student"}))
    first = {path.name: path.read_bytes() for path in student[0].iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert {path.name: path.read_bytes() for path in folders["student"].iterdir()} == before


def test_a_twin_is_attacked_with_rescaled_logits_too(tmp_path, data, folders, student):
    card, _, _ = scored(tmp_path, data, folders["twin"], CONFIG.model_copy(update={"subject": "twin", "corruptions": ()}))
    assert card.form == "twin"
    assert (card.macs, card.parameters) == (student[1].macs, student[1].parameters)
    assert {attack.name: attack.crafted_on for attack in card.attacks}["pgd-5"] == ("twin", "twin (rescaled logits)")
    assert "pgd-5/rescaled" in load_file(tmp_path / "adversarial.safetensors")
    replays, _ = read_adversarial(tmp_path, CONFIG.methods(), questions_of(data.test, CONFIG, 0), "twin", classes=4)
    assert [(replay.name, replay.crafted_on) for replay in replays] == [("fgsm", "twin"), ("pgd-5", "twin"), ("pgd-5", "twin (rescaled logits)")]
    assert load_network(folders["twin"]).spec.quantization is not None


def test_nothing_is_attacked_or_corrupted_that_was_not_asked_for(tmp_path, data, folders):
    config = EvaluateConfig(attacks=(), corruptions=(), subject="teacher")
    card, correct, _ = scored(tmp_path, data, folders["student"], config)
    assert card.robust.reason == "not measured: no attacks were asked for"
    assert (card.attacks, card.epsilon_curve, card.masking, card.corruptions) == ((), (), (), ())
    indices = ["indices/attack", "indices/black-box", "indices/corruption"]
    assert sorted(correct) == sorted(["clean", "confidence", "nll", "brier", "digest/samples", *indices])
    assert {correct[name].dtype for name in ("confidence", "nll", "brier")} == {np.dtype(np.float32)}
    assert correct["digest/samples"].shape == (32,)
    assert json.loads((tmp_path / "samples.json").read_text())["attack"] is None


def test_a_split_smaller_than_asked_is_judged_whole(data):
    questions = questions_of(data.test, EvaluateConfig(), 0)
    assert len(questions.attacked) == len(questions.corrupted) == 220
    assert np.isin(questions.black_box, questions.attacked).all()
    assert np.isin(questions.curve, questions.attacked).all()


def test_a_set_is_its_corruptions_without_those_that_leave_grey_images_as_they_are(data):
    assert questions_of(data.test, EvaluateConfig(corruptions="common"), 0).corruptions == SETS["common"]
    assert questions_of(data.test, EvaluateConfig(corruptions="extra"), 0).corruptions == ("speckle-noise", "gaussian-blur-c", "spatter")


def test_corrupted_files_are_found_from_the_project_and_count_by_content(tmp_path, data):
    count = len(data.test)
    images = np.tile(np.rint(data.test.read(np.arange(count)) * 255).astype(np.uint8).transpose(0, 2, 3, 1), (5, 1, 1, 1))
    (tmp_path / "corrupted").mkdir()
    np.save(tmp_path / "corrupted" / "fog.npy", images)
    np.save(tmp_path / "corrupted" / "labels.npy", np.tile(data.test.labels, 5))
    config = EvaluateConfig(corruptions="./corrupted", corruption_samples=20)
    questions = questions_of(data.test, config, 0, tmp_path)
    assert questions.corruptions == ("fog",)
    clean = data.test.read(questions.corrupted)
    np.testing.assert_allclose(questions.corrupted_images("fog", 5, clean, questions.corrupted), clean, atol=0.003)  # 8 bits
    assert set(config.content(tmp_path)) == {"corruptions"}
    assert EvaluateConfig().content(tmp_path) == {}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"attacks": ["pdg-20"]}, ["unknown name 'pdg'", "did you mean 'pgd'"]),
        ({"attacks": ["pgd-0"]}, ["'pgd-0' is not an attack", "steps = 0"]),
        ({"corruptions": ["rain"]}, ["unknown name 'rain'", "known: brightness"]),
        ({"corruptions": "commonn"}, ["'commonn' is no set of corruptions: standard, common, extra", "written with a slash"]),
        ({"epsilon": 0}, ["epsilon", "greater than 0"]),
        ({"norm": "linf", "epsilon": 8.0}, ["epsilon = 8 is not in (0, 1]", "8/255 is 0.0314"]),
        ({"epsilon_curve": [-1]}, ["multiples of epsilon lie in"]),
        ({"attack": ["fgsm"]}, ["Extra inputs"]),
    ],
    ids=["misspelt attack", "no steps", "unknown corruption", "unknown set", "no epsilon", "epsilon in 255ths", "negative multiple", "unknown key"],
)
def test_bad_settings_are_refused_with_what_is_allowed(keys, words):
    with pytest.raises(ValidationError) as caught:
        EvaluateConfig.model_validate(keys)
    assert all(word in str(caught.value) for word in words)


def test_epsilon_has_a_default_for_each_norm_and_the_curve_stays_in_the_range():
    assert EvaluateConfig().strength == 8 / 255
    assert EvaluateConfig(norm="l2").strength == 0.5
    assert EvaluateConfig(epsilon=0.6, epsilon_curve=(0, 1, 0.5, 2)).curve() == (0.3, 0.6)


def test_damaged_or_foreign_adversarial_samples_are_told(tmp_path, student, data):
    folder = student[0]
    path = tmp_path / "adversarial.safetensors"
    path.write_bytes((folder / path.name).read_bytes()[:100])
    with pytest.raises(VerificationError) as caught:
        read_adversarial(tmp_path, CONFIG.methods(), questions_of(data.test, CONFIG, 0), "student", classes=4)
    assert caught.value.problems[0].message.startswith("adversarial samples cannot be read")
    assert caught.value.problems[0].at == str(path)
    assert "kdpipe build" in caught.value.problems[0].do
    other = CONFIG.model_copy(update={"attack_samples": 50})
    with pytest.raises(VerificationError) as caught:
        read_adversarial(folder, other.methods(), questions_of(data.test, other, 0), "student", classes=4)
    assert caught.value.problems[0].message == "90 adversarial samples, 50 were asked for"
    assert caught.value.problems[0].at == str(folder / path.name)
    assert "kdpipe build" in caught.value.problems[0].do
