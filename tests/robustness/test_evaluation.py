import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.robustness.attacks.method import parse_attack
from kdpipe.robustness.crafting import craft, craft_curve
from kdpipe.robustness.evaluation import Questions, Subject, judge, stands
from kdpipe.robustness.samples import stratified

SUBJECT = Subject("student", "network", 1234, parameters=10, macs=20)


def questions(samples, *, attacked=100, corruptions=("jpeg", "gaussian-noise"), batch_size=64):
    draw = lambda n: stratified(samples.labels, n, seed=0)  # noqa: E731
    return Questions(draw(attacked), draw(60), draw(40), draw(90), tuple(corruptions), batch_size, 0)


@pytest.fixture(scope="module")
def attacked(robust_net, unseen):
    asked = questions(unseen)
    replays = []
    for name, indices in (("fgsm", asked.attacked), ("pgd-5", asked.attacked), ("square-30", asked.black_box)):
        method = parse_attack(name, norm="linf", epsilon=0.15, at="here")
        replays.append(craft(method, name, robust_net, unseen, indices, crafted_on="student", seed=0, batch_size=64))
    curve = craft_curve(robust_net, unseen, asked.curve, (0.05, 0.15, 0.3), norm="linf", seed=0, batch_size=64)
    return asked, replays, curve


@pytest.fixture(scope="module")
def judged(robust_net, unseen, attacked):
    asked, replays, curve = attacked
    return judge(TorchPredictor(robust_net), unseen, asked, SUBJECT, replays=replays, curve=curve)


def test_every_figure_is_that_of_its_per_sample_answers(judged):
    card, correct = judged.scorecard, judged.correct
    assert card.clean.value == pytest.approx(100 * correct["clean"].mean())
    assert card.robust.value == pytest.approx(100 * correct["robust"].mean())
    assert [attack.name for attack in card.attacks] == ["fgsm", "pgd-5", "square-30"]
    for attack in card.attacks:
        assert attack.accuracy.value == pytest.approx(100 * correct[f"attack/{attack.name}"].mean())
        assert (attack.epsilon, attack.norm, attack.crafted_on) == (0.15, "linf", ("student",))
    assert [(corruption.name, corruption.severity) for corruption in card.corruptions] == [
        (name, s) for name in ("jpeg", "gaussian-noise") for s in range(1, 6)
    ]
    for corruption in card.corruptions:
        assert corruption.accuracy.value == pytest.approx(100 * correct[f"corruption/{corruption.name}-{corruption.severity}"].mean())
    assert card.corruption_mean.value == pytest.approx(np.mean([corruption.accuracy.value for corruption in card.corruptions]))
    assert card.corruption_mean.n == 90
    assert (card.size_bytes, card.parameters, card.macs) == (1234, 10, 20)
    assert (card.clean.n, card.nll.n, card.ece.n, len(card.reliability)) == (360, 360, 360, 15)


def test_clean_answers_are_the_networks_argmax(judged, robust_net, unseen):
    said = robust_net(torch.from_numpy(unseen.images)).argmax(1).numpy()
    assert np.array_equal(judged.correct["clean"], said == unseen.labels)


def test_no_robust_figure_exceeds_the_clean_one_nor_any_attacks(judged, attacked):
    asked, replays, _ = attacked
    clean, robust = judged.correct["clean"][asked.attacked], judged.correct["robust"]
    assert (robust <= clean).all()
    for replay in replays:
        own = judged.correct[f"attack/{replay.name}"]
        assert (own <= judged.correct["clean"][replay.indices]).all()
        assert (robust[np.searchsorted(asked.attacked, replay.indices)] <= own).all()
    union = clean.copy()
    for replay in replays:
        union[np.searchsorted(asked.attacked, replay.indices)] &= judged.survived[replay.name, "student"]
    assert np.array_equal(robust, union)
    assert 0.2 < robust.mean() < clean.mean()


def test_a_clean_error_counts_under_attack_even_where_the_replay_would_be_right(unseen):
    """Replays of another model may lie where this one is right."""
    asked = questions(unseen, corruptions=())
    wrong_when_clean = set(asked.attacked[:10].tolist())
    clean_images = {image.tobytes(): index for index, image in enumerate(unseen.images)}

    def model(batch):
        logits = np.zeros((len(batch), 4), dtype=np.float32)
        for row, image in enumerate(batch):
            index = clean_images.get(image.tobytes())
            label = unseen.labels[index] if index is not None else None
            logits[row, label if index is not None and index not in wrong_when_clean else (0 if label is None else (label + 1) % 4)] = 1
        return logits

    fgsm = parse_attack("fgsm", norm="linf", epsilon=0.1, at="here")
    replay = craft(fgsm, "fgsm", lambda x: x.flatten(1)[:, :4], unseen, asked.attacked, crafted_on="other", seed=0, batch_size=64)
    judgement = judge(model, unseen, asked, SUBJECT, replays=[replay])
    assert judgement.survived["fgsm", "other"][:10].any()
    assert not judgement.correct["robust"][:10].any()
    assert not judgement.correct["attack/fgsm"][:10].any()


def test_the_curve_falls_from_clean_and_counts_what_the_attacks_found(judged, attacked):
    asked, _, _ = attacked
    points = judged.scorecard.epsilon_curve
    assert [point.epsilon for point in points] == [0, 0.05, 0.15, 0.3]
    assert points[0].accuracy.value == pytest.approx(100 * judged.correct["clean"][asked.curve].mean())
    values = [point.accuracy.value for point in points]
    assert values == sorted(values, reverse=True)
    robust = judged.correct["robust"][np.searchsorted(asked.attacked, asked.curve)]
    assert values[2] <= 100 * robust.mean() + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=9), st.integers(1, 4))
def test_a_tie_is_an_error_under_attack(rows, batch_size):
    logits = np.array(rows, dtype=np.float32)
    labels = np.arange(len(rows)) % 3
    before = logits.copy()
    right = stands(lambda batch: logits[batch[:, 0].astype(int)], np.arange(len(rows), dtype=np.float32)[:, None], labels, batch_size)
    assert right.tolist() == [all(row[label] > other for k, other in enumerate(row) if k != label) for row, label in zip(rows, labels, strict=True)]
    assert np.array_equal(logits, before)


def test_the_answer_does_not_depend_on_the_batch_size(robust_net, unseen, judged, attacked):
    _, replays, curve = attacked
    again = judge(TorchPredictor(robust_net), unseen, questions(unseen, batch_size=17), SUBJECT, replays=replays, curve=curve)
    for name, right in judged.correct.items():
        assert (again.correct[name] != right).mean() <= 0.02, name  # a logit within rounding of another may turn


def test_what_was_not_asked_is_told_as_not_measured(robust_net, unseen):
    judgement = judge(TorchPredictor(robust_net), unseen, questions(unseen, corruptions=()), SUBJECT)
    assert judgement.scorecard.robust.value is None
    assert judgement.scorecard.robust.reason == "not measured: no attacks were asked for"
    assert judgement.scorecard.corruption_mean.reason == "not measured: no corruptions were asked for"
    assert "robust" not in judgement.correct
    assert judgement.scorecard.epsilon_curve == ()


def test_no_more_than_a_batch_is_read_at_once(robust_net, unseen):
    unseen.reads.clear()
    judge(TorchPredictor(robust_net), unseen, questions(unseen, batch_size=16), SUBJECT)
    assert max(unseen.reads) == 16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: np.full((len(x), 4), np.nan, dtype=np.float32), "the model's logits are not finite"),
        (lambda x: np.zeros((len(x), 4, 1), dtype=np.float32), "the model's logits are of shape (64, 4, 1) for 64 samples"),
        (lambda x: np.zeros((1, 4), dtype=np.float32), "the model's logits are of shape (1, 4) for 64 samples"),
    ],
    ids=["nan", "too many dimensions", "too few rows"],
)
def test_answers_that_are_no_logits_are_refused(unseen, model, message):
    with pytest.raises(VerificationError) as caught:
        judge(model, unseen, questions(unseen), SUBJECT)
    problem = caught.value.problems[0]
    assert problem.message == message
    assert problem.at == "test samples 0 to 63"
    assert problem.do == "check its weights and calibration, then build it again"


def test_a_linear_models_exact_robust_accuracy_is_found(unseen):
    """Two classes: sample by sample robust exactly where the margin exceeds epsilon times the l1 norm of the difference of the rows."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).requires_grad_(False)
    linear[1].weight.copy_(torch.randn(2, 64, generator=generator))
    linear[1].bias.zero_()
    images = 0.25 + unseen.images / 2  # away from the ends of the range
    logits = linear(torch.from_numpy(images))
    reach = (linear[1].weight[0] - linear[1].weight[1]).abs().sum()
    margin = (logits[:, 0] - logits[:, 1]).abs()
    epsilon = float(margin.quantile(0.4) / reach)
    samples = type(unseen)(images, logits.argmax(1).numpy(), [])
    asked = questions(samples, attacked=360, corruptions=())
    pgd = parse_attack("pgd-40", norm="linf", epsilon=epsilon, at="here")
    replay = craft(pgd, "pgd-40", linear, samples, asked.attacked, crafted_on="itself", seed=0, batch_size=64)
    judgement = judge(TorchPredictor(linear), samples, asked, SUBJECT, replays=[replay])
    expected = (margin > epsilon * reach).numpy()
    assert expected.mean() == pytest.approx(0.6, abs=0.01)
    assert (judgement.correct["robust"] != expected).mean() < 0.01  # those that lie on the border to float32
