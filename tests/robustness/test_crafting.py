import numpy as np
import pytest
import torch

from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.robustness.attacks.method import parse_attack
from kdpipe.robustness.crafting import craft, craft_curve, rescaled
from kdpipe.robustness.evaluation import stands
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
