import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import write_json
from kdpipe.foundation.networks import Network, save_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.engine import calibrate_, freeze, plan_of, prepare
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages import score, score_export
from kdpipe.stages.export import CONTRACT_FILE, contract_of
from kdpipe.stages.judged_examples import Examples
from kdpipe.stages.score import EvaluateConfig
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets.profile import RuntimeNeed, load_profile
from kdpipe.targets.runtimes.runtime import open_session

CONFIG = EvaluateConfig(
    epsilon=0.1,
    attacks=("fgsm", "pgd-5"),
    attack_samples=90,
    curve_samples=40,
    square_queries=20,
    square_samples=50,
    corruptions=("contrast",),
    corruption_samples=60,
)
TWIN = "the file answers as its twin under attack"


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def data(four_digits):
    return four_digits


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, data, reader_of_four):
    """The folders that earlier steps leave: a student, its twin, a coarser twin in the place of post-training quantization, their files and scores."""
    root = tmp_path_factory.mktemp("artifacts")
    student = reader_of_four
    spec = student.spec
    save_network(student, root / "student")
    (root / "export").mkdir()
    for folder, file, bits in (("qat", "model.onnx", 7), ("qat/ptq", "ptq.onnx", 3)):
        twin = prepare(student.module, Scheme(weight_bits=bits), batch_norm="folded")
        calibrate_(twin, [torch.from_numpy(data.train.images)])
        frozen = freeze(twin)
        save_network(Network(spec.model_copy(update={"quantization": plan_of(frozen)}), frozen), root / folder)
        (root / "export" / file).write_bytes(to_bytes(to_onnx(exportable(frozen), (1, 8, 8), opset=18, static_batch=None)))
    write_json(root / "export" / CONTRACT_FILE, contract_of(spec.contract, load_profile("cpu", at="here")))
    for step, folder, subject in (("score-distill", "student", "student"), ("score-qat", "qat", "twin")):
        (root / step).mkdir()
        context = Context(root / step, root, 0, 1, SilentProgress())
        score.run(Inputs({"subject": root / folder}, data, None), CONFIG.model_copy(update={"subject": subject}), context)
    return {name: root / name for name in ("export", "qat", "score-distill", "score-qat")}


def judged(folder, data, artifacts, *, runtimes=None, config=CONFIG):
    folder.mkdir(exist_ok=True)
    profile = load_profile("cpu", at="here")
    if runtimes is not None:
        profile = profile.model_copy(update={"runtimes": runtimes})
    score_export.run(Inputs(artifacts, data, None, profile), config, Context(folder, folder, 0, 1, SilentProgress()))
    cards = [Scorecard.model_validate(card) for card in json.loads((folder / "scorecards.json").read_text())]
    return cards, arrays_of(folder / "correct.npz")


@pytest.fixture(scope="module")
def cpu(tmp_path_factory, data, artifacts):
    folder = tmp_path_factory.mktemp("score-export")
    return folder, *judged(folder, data, artifacts)


def test_both_files_are_judged_in_every_runtime_of_the_target(cpu, artifacts):
    _, cards, correct = cpu
    judged_in = [(card.runtime.split()[0], card.model) for card in cards]
    assert judged_in == [(runtime, model) for runtime in ("onnxruntime", "openvino") for model in ("int8", "ptq")]
    for card in cards:
        own = f"{card.model}/{card.runtime}/"
        assert card.form == "file"
        assert card.clean.value == pytest.approx(100 * correct[f"{own}clean"].mean())
        assert card.robust.value == pytest.approx(100 * correct[f"{own}robust"].mean())
        assert card.size_bytes == (artifacts["export"] / {"int8": "model.onnx", "ptq": "ptq.onnx"}[card.model]).stat().st_size
        assert len(card.corruptions) == 5
        assert [point.epsilon for point in card.epsilon_curve] == [0, 0.05, 0.1, 0.2]
        assert [check.name for check in card.masking].count(TWIN) == 1
    assert json.loads((cpu[0] / "unavailable.json").read_text()) == {}


def test_the_figures_are_those_of_the_file_in_its_runtime(cpu, data, artifacts):
    _, cards, correct = cpu
    with open_session("onnxruntime", artifacts["export"] / "model.onnx") as session:
        right = session(data.test.images).argmax(1) == data.test.labels
    assert np.array_equal(correct[f"int8/{cards[0].runtime}/clean"], right)
    assert right.mean() > 0.85


def test_a_file_stands_no_sample_that_any_replay_fells(cpu, data, artifacts):
    _, cards, correct = cpu
    attacked = correct["indices/attack"]
    for card in cards[:2]:
        own, file = f"{card.model}/{card.runtime}/", {"int8": "model.onnx", "ptq": "ptq.onnx"}[card.model]
        with open_session("onnxruntime", artifacts["export"] / file) as session:
            for step in ("score-qat", "score-distill"):
                replayed = load_file(artifacts[step] / "adversarial.safetensors")["pgd-5"]
                right = session(replayed).argmax(1) == data.test.labels[attacked]
                assert (correct[f"{own}robust"] <= right).all()
        assert (correct[f"{own}robust"] <= correct[f"{own}clean"][attacked]).all()


def test_each_file_meets_attacks_on_its_own_twin_and_a_search_on_itself(cpu):
    _, cards, _ = cpu
    made = {card.model: {attack.name: attack.crafted_on for attack in card.attacks} for card in cards}
    assert made["int8"]["pgd-5"] == ("twin", "twin (rescaled logits)", "student")
    assert made["ptq"]["pgd-5"] == ("ptq twin", "ptq twin (rescaled logits)", "twin", "twin (rescaled logits)", "student")
    assert made["int8"]["square-20"] == made["ptq"]["square-20"] == ("file",)
    assert {attack.accuracy.n for card in cards for attack in card.attacks if attack.name == "square-20"} == {50}


def test_the_search_starts_from_the_best_replay_and_so_finds_no_less(cpu):
    _, cards, correct = cpu
    places = np.searchsorted(correct["indices/attack"], correct["indices/black-box"])
    for card in cards:
        own = f"{card.model}/{card.runtime}/"
        replays = correct[f"{own}attack/fgsm"] & correct[f"{own}attack/pgd-5"]
        assert (correct[f"{own}attack/square-20"] <= replays[places]).all()


def test_the_examples_are_answered_by_the_int8_file(cpu, artifacts):
    folder, _, _ = cpu
    examples = Examples.model_validate_json((folder / "samples.json").read_bytes())
    with open_session("onnxruntime", artifacts["export"] / "model.onnx") as session:
        said = session(load_file(folder / "samples.safetensors")["adversarial"]).argmax(1)
    assert [answer.label for answer in examples.answers["adversarial"]] == said.tolist()
    assert examples.attack == "pgd-5 on twin"


def test_a_file_that_is_not_its_twin_is_flagged(tmp_path, data, artifacts):
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.onnx").write_bytes((artifacts["export"] / "ptq.onnx").read_bytes())
    (export / CONTRACT_FILE).write_bytes((artifacts["export"] / CONTRACT_FILE).read_bytes())
    cards, _ = judged(tmp_path / "score", data, {**artifacts, "export": export}, runtimes=(RuntimeNeed(name="onnxruntime"),))
    assert [card.model for card in cards] == ["int8"]  # without ptq.onnx there is nothing else to judge
    (check,) = [check for check in cards[0].masking if check.name == TWIN]
    assert check.passed is False


def test_a_runtime_that_is_missing_is_recorded_with_the_reason(tmp_path, data, artifacts):
    runtimes = (RuntimeNeed(name="openvino", versions=">=9000"), RuntimeNeed(name="onnxruntime"))
    cards, _ = judged(tmp_path, data, artifacts, runtimes=runtimes)
    assert [card.runtime.split()[0] for card in cards] == ["onnxruntime", "onnxruntime"]
    (name, reason), *rest = json.loads((tmp_path / "unavailable.json").read_text()).items()
    assert name == "openvino"
    assert ">=9000 is needed" in reason
    assert rest == []


def test_without_any_runtime_the_step_fails(tmp_path, data, artifacts):
    with pytest.raises(UnavailableError) as caught:
        judged(tmp_path, data, artifacts, runtimes=(RuntimeNeed(name="openvino", versions=">=9000"),))
    problem = caught.value.problems[0]
    assert ">=9000 is needed" in problem.message
    assert problem.at == str(artifacts["export"] / "model.onnx")
    assert "pip install 'openvino>=9000'" in problem.do
    assert not (tmp_path / "scorecards.json").exists()


def test_without_attacks_files_are_judged_on_what_is_asked(tmp_path, data, artifacts):
    config = CONFIG.model_copy(update={"attacks": (), "corruptions": ()})
    cards, _ = judged(tmp_path, data, artifacts, runtimes=(RuntimeNeed(name="onnxruntime"),), config=config)
    assert all(card.robust.value is None and card.masking == () and card.epsilon_curve == () for card in cards)


def test_the_same_seed_gives_the_same_bytes(tmp_path, data, artifacts, cpu):
    judged(tmp_path, data, artifacts)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: path.read_bytes() for path in cpu[0].iterdir()}


def test_every_attack_of_many_steps_is_crafted_by_name_and_replayed_on_the_file(tmp_path, data, artifacts):
    names = ("apgd-ce-5", "apgd-t-3", "fab-t-3", "cw-5", "mi-fgsm-5", "autoattack-2")
    config = CONFIG.model_copy(update={"attacks": names, "attack_samples": 40, "square_samples": 20, "curve_samples": 20, "corruptions": ()})
    (tmp_path / "score-qat").mkdir()
    score.run(
        Inputs({"subject": artifacts["qat"]}, data, None),
        config.model_copy(update={"subject": "twin"}),
        Context(tmp_path / "score-qat", tmp_path, 0, 1, SilentProgress()),
    )
    own = {name: artifacts[name] for name in ("export", "qat")} | {"score-qat": tmp_path / "score-qat"}
    cards, correct = judged(tmp_path / "judged", data, own, runtimes=(RuntimeNeed(name="onnxruntime"),), config=config)
    card = cards[0]
    assert {attack.name: attack.crafted_on for attack in card.attacks} == {
        **dict.fromkeys(names, ("twin", "twin (rescaled logits)")),
        "square-20": ("file",),
    }
    replayed = load_file(tmp_path / "score-qat" / "adversarial.safetensors")
    with open_session("onnxruntime", artifacts["export"] / "model.onnx") as session:
        for name in names:
            right = correct[f"int8/{card.runtime}/clean"][correct["indices/attack"]]
            for version in (name, f"{name}/rescaled"):
                right = right & (session(replayed[version]).argmax(1) == data.test.labels[correct["indices/attack"]])
            assert (correct[f"int8/{card.runtime}/attack/{name}"] <= right).all()
            assert (right & ~correct[f"int8/{card.runtime}/attack/{name}"]).sum() <= 2  # ties count as errors
    assert card.robust.value < card.clean.value
