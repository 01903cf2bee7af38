import numpy as np
import pytest
import torch

from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.robustness.attacks.method import parse_attack
from kdpipe.robustness.crafting import Work, craft, craft_curve, rescaled
from kdpipe.robustness.evaluation import stands
from kdpipe.robustness.kept_batches import KeptBatches
from kdpipe.robustness.samples import stratified

CHOSEN = np.array([3, 8, 21, 22, 90, 150, 151, 300])


@pytest.mark.parametrize("name", ["fgsm", "pgd-3x2", "square-20"])
def test_the_batch_size_does_not_change_what_a_sample_meets(robust_net, unseen, name):
    method = parse_attack(name, norm="linf", epsilon=0.1, at="here")
    crafted = [craft(method, name, robust_net, unseen, CHOSEN, crafted_on="itself", seed=0, batch_size=size) for size in (3, 8)]
    assert crafted[0].x_adv.shape == (8, 1, 8, 8)
    np.testing.assert_allclose(crafted[0].x_adv, crafted[1].x_adv, atol=1e-5)  # sums of other batch sizes round differently
    few = craft(method, name, robust_net, unseen, CHOSEN[4:6], crafted_on="itself", seed=0, batch_size=8)
    np.testing.assert_allclose(few.x_adv, crafted[1].x_adv[4:6], atol=1e-5)


def test_accuracy_does_not_rise_along_the_curve_and_samples_stay_in_their_balls(robust_net, unseen):
    chosen = stratified(unseen.labels, 80, seed=0)
    points = craft_curve(robust_net, unseen, chosen, (0.4, 0.05, 0.2), norm="linf", seed=0, batch_size=32)
    assert [point.epsilon for point in points] == [0.05, 0.2, 0.4]
    standing = [stands(TorchPredictor(robust_net), point.x_adv, unseen.labels[chosen], 32) for point in points]
    assert (standing[1] <= standing[0]).all()
    assert (standing[2] <= standing[1]).all()
    assert standing[0].mean() > 0.5 > standing[2].mean()
    for point in points:
        assert np.abs(point.x_adv - unseen.read(chosen)).max() <= point.epsilon + 1e-6


def test_rescaled_logits_lie_one_apart_on_average_and_rank_alike(robust_net, unseen):
    scaled = rescaled(lambda x: 500 * robust_net(x), unseen, CHOSEN, batch_size=3)
    x = torch.from_numpy(unseen.read(CHOSEN))
    two = scaled(x).topk(2, dim=1).values
    assert (two[:, 0] - two[:, 1]).mean() == pytest.approx(1, rel=1e-5)
    assert torch.equal(scaled(x).argsort(1), robust_net(x).argsort(1))


def test_rescaling_undoes_a_temperature_that_hides_the_gradient(robust_net, unseen):
    chosen = stratified(unseen.labels, 60, seed=0)
    steep = lambda x: 1e4 * robust_net(x)  # noqa: E731
    method = parse_attack("pgd-10", norm="linf", epsilon=0.2, at="here")
    standing = {}
    for name, logits_of in {"hidden": steep, "rescaled": rescaled(steep, unseen, chosen, batch_size=60), "plain": robust_net}.items():
        x_adv = craft(method, "pgd-10", logits_of, unseen, chosen, crafted_on="itself", seed=0, batch_size=60).x_adv
        standing[name] = stands(TorchPredictor(robust_net), x_adv, unseen.labels[chosen], 60).mean()
    assert standing["hidden"] > standing["plain"] + 0.1
    assert standing["rescaled"] < standing["hidden"] - 0.05
    assert standing["rescaled"] == pytest.approx(standing["plain"], abs=0.1)  # another temperature, another path


class KilledError(Exception):
    pass


def interrupted(logits_of, calls):
    """The model, until it was asked `calls` times."""
    left = calls

    def asked(x):
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        return logits_of(x)

    return asked


@pytest.mark.parametrize("name", ["pgd-4x2", "autoattack-3", "square-30"])
def test_an_attack_that_was_killed_goes_on_to_the_same_bits_and_asks_less(robust_net, unseen, tmp_path, name):
    method = parse_attack(name, norm="linf", epsilon=0.15, at="here")
    asked = {"crafted_on": "itself", "seed": 0, "batch_size": 4}
    calls = []

    def counted(x):
        calls.append(len(x))
        return robust_net(x)

    whole = craft(method, name, counted, unseen, CHOSEN, **asked)
    for where in (len(calls) // 3, 2 * len(calls) // 3):
        work = Work(kept=KeptBatches(tmp_path / f"{name}-{where}"))
        with pytest.raises(KilledError):
            craft(method, name, interrupted(robust_net, where), unseen, CHOSEN, **asked, work=work)
        total, _ = len(calls), calls.clear()
        again = craft(method, name, counted, unseen, CHOSEN, **asked, work=work)
        assert np.array_equal(again.x_adv, whole.x_adv)
        assert again.note == whole.note
        if where > total / 2:
            assert len(calls) < total  # the first of the two batches was kept
        calls.extend([0] * (total - len(calls)))


def test_the_members_of_an_ensemble_are_taken_up_one_by_one(robust_net, unseen, tmp_path):
    method = parse_attack("autoattack-3", norm="linf", epsilon=0.15, at="here")
    work = Work(kept=KeptBatches(tmp_path))
    asked = {"crafted_on": "itself", "seed": 0, "batch_size": 8, "work": work}
    with pytest.raises(KilledError):  # one batch; the first member asks 1 + 3 + 1 + 1 times
        craft(method, "autoattack-3", interrupted(robust_net, 10), unseen, CHOSEN, **asked)
    (kept,) = tmp_path.iterdir()
    part = work.kept.read(kept.name.partition("-")[0], 0)
    assert (part.name, part.last) == ("apgd-ce", False)
    whole = craft(method, "autoattack-3", robust_net, unseen, CHOSEN, **asked)
    assert np.array_equal(whole.x_adv, craft(method, "autoattack-3", robust_net, unseen, CHOSEN, **{**asked, "work": Work()}).x_adv)


def test_a_damaged_batch_and_one_of_another_question_are_made_again(robust_net, unseen, tmp_path):
    method = parse_attack("pgd-3", norm="linf", epsilon=0.15, at="here")
    asked = {"crafted_on": "itself", "batch_size": 8, "work": Work(kept=KeptBatches(tmp_path))}
    first = craft(method, "pgd-3", robust_net, unseen, CHOSEN, seed=0, **asked)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (content[:50], content[:-8] + bytes(8), b""):
        path.write_bytes(damaged)
        assert np.array_equal(craft(method, "pgd-3", robust_net, unseen, CHOSEN, seed=0, **asked).x_adv, first.x_adv)
    assert not np.array_equal(craft(method, "pgd-3", robust_net, unseen, CHOSEN, seed=1, **asked).x_adv, first.x_adv)
    model = Work(kept=KeptBatches(tmp_path).of("another model"))
    other = craft(method, "pgd-3", lambda x: -robust_net(x), unseen, CHOSEN, seed=0, **{**asked, "work": model})
    assert not np.array_equal(other.x_adv, first.x_adv)


def test_the_curve_goes_on_to_the_same_bits(robust_net, unseen, tmp_path):
    chosen = stratified(unseen.labels, 40, seed=0)
    asked = {"norm": "linf", "seed": 0, "batch_size": 20}
    whole = craft_curve(robust_net, unseen, chosen, (0.05, 0.2), **asked)
    work = Work(kept=KeptBatches(tmp_path))
    with pytest.raises(KilledError):
        craft_curve(interrupted(robust_net, 40), unseen, chosen, (0.05, 0.2), **asked, work=work)
    assert len(list(tmp_path.iterdir())) == 3
    again = craft_curve(robust_net, unseen, chosen, (0.05, 0.2), **asked, work=work)
    assert all(np.array_equal(one.x_adv, other.x_adv) for one, other in zip(whole, again, strict=True))


def test_a_long_attack_says_which_member_is_done_and_how_many_samples_stand(robust_net, unseen):
    class Listener:
        def __init__(self):
            self.said, self.labels = [], []

        def __call__(self, items, label, *, total=None, unit="batch"):
            self.labels.append((label, total, unit))
            return items

        def say(self, message):
            self.said.append(message)

    listener = Listener()
    for name in ("autoattack-3", "pgd-3"):
        method = parse_attack(name, norm="linf", epsilon=0.05, at="here")
        craft(method, name, robust_net, unseen, CHOSEN, crafted_on="student", seed=0, batch_size=5, work=Work(progress=listener))
    assert listener.labels == [("autoattack-3 on student", 2, "batch"), ("pgd-3 on student", 2, "batch")]
    assert len(listener.said) == 8  # four members of two batches; pgd has no members
    assert listener.said[0].startswith("autoattack-3 on student, samples 1 to 5 of 8: ")
    assert listener.said[0].endswith(" of 5 stand after apgd-ce")
    assert listener.said[-1].endswith(" of 3 stand after square")
