import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.ood import GENERATED, auroc_figure, fpr95_figure, generated, ood_figures


def normal(inside=300, outside=200, apart=1.5, seed=0, step=None):
    generator = np.random.default_rng(seed)
    scores = generator.normal(apart, 1, inside), generator.normal(0, 1.3, outside)
    return scores if step is None else tuple(np.round(part / step) * step for part in scores)


@pytest.mark.parametrize("step", [None, 0.5], ids=["all different", "many equal"])
def test_auroc_is_scikit_learns(step):
    inside, outside = normal(step=step)
    truth = np.concatenate([np.ones(300), np.zeros(200)])
    figure = auroc_figure(inside, outside)
    assert figure.value == pytest.approx(100 * roc_auc_score(truth, np.concatenate([inside, outside])), abs=1e-9)
    assert figure.low < figure.value < figure.high
    assert figure.n == 200


@pytest.mark.parametrize("step", [None, 0.5], ids=["all different", "many equal"])
def test_fpr95_is_the_first_point_of_scikit_learns_curve_where_95_per_cent_pass(step):
    inside, outside = normal(step=step)
    truth = np.concatenate([np.ones(300), np.zeros(200)])
    false, true, _ = roc_curve(truth, np.concatenate([inside, outside]), drop_intermediate=False)
    figure = fpr95_figure(inside, outside, seed=0)
    assert figure.value == pytest.approx(100 * false[np.argmax(true >= 0.95 - 1e-9)], abs=1e-9)
    assert figure.low <= figure.value <= figure.high


def test_sets_that_are_wholly_told_apart_keep_an_interval():
    inside, outside = np.linspace(2, 3, 50), np.linspace(0, 1, 40)
    auroc, fpr95 = auroc_figure(inside, outside), fpr95_figure(inside, outside, seed=0)
    assert (auroc.value, fpr95.value) == (100, 0)
    assert 90 < auroc.low < 99.9
    assert 5 < fpr95.high < 12  # 3.7 / 40: what no event in 40 leaves possible
    swapped = auroc_figure(outside, inside)
    assert (swapped.value, swapped.high) == (0, pytest.approx(100 - auroc.low))


def test_sets_that_do_not_differ_are_at_chance():
    generator = np.random.default_rng(0)
    figure = auroc_figure(generator.normal(size=500), generator.normal(size=500))
    assert figure.low < 50 < figure.high


@pytest.mark.parametrize("apart", [0.5, 3.0], ids=str)
def test_the_interval_of_auroc_holds_the_truth_in_about_95_of_100_experiments(apart):
    from scipy.stats import norm

    truth = 100 * norm.cdf(apart / np.sqrt(1 + 1.3**2))
    figures = [auroc_figure(*normal(100, 80, apart, seed)) for seed in range(400)]
    held = np.mean([figure.low <= truth <= figure.high for figure in figures])
    assert held > 0.915  # 95 % less three standard errors of 400 experiments


def test_the_interval_of_fpr95_holds_the_truth_in_about_95_of_100_experiments():
    from scipy.stats import norm

    truth = 100 * norm.sf((norm.ppf(0.05) + 1.5) / 1.3)
    figures = [fpr95_figure(*normal(100, 80, 1.5, seed), seed=seed) for seed in range(50)]
    held = np.mean([figure.low <= truth <= figure.high for figure in figures])
    assert held > 0.86  # 95 % less three standard errors of 50 experiments


@pytest.mark.parametrize("name", GENERATED)
def test_a_set_that_is_made_has_the_samples_shape_and_range_and_repeats(name, four_digits):
    indices = np.array([3, 7, 20])
    outside = generated(name, four_digits, np.arange(40), seed=0)
    made = outside.samples.read(indices)
    assert made.shape == four_digits.read(indices).shape
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    assert np.array_equal(made[1:2], generated(name, four_digits, np.arange(40), seed=0).samples.read(np.array([7])))  # whatever is read beside it
    assert not np.allclose(made, four_digits.read(indices))
    if name != "inverted":
        assert not np.array_equal(made, generated(name, four_digits, np.arange(40), seed=1).samples.read(indices))


def test_shuffled_pixels_are_the_same_pixels(four_digits):
    indices = np.array([3, 7])
    made = generated("shuffled-pixels", four_digits, indices, seed=0).samples.read(indices)
    for shuffled, sample in zip(made, four_digits.read(indices), strict=True):
        assert np.array_equal(np.sort(shuffled.ravel()), np.sort(sample.ravel()))


def test_each_score_gets_its_figures():
    inside, outside = normal()
    found = ood_figures("noise", {"max-softmax": inside, "energy": -inside}, {"max-softmax": outside, "energy": -outside}, seed=0)
    assert [(it.name, it.score) for it in found] == [("noise", "max-softmax"), ("noise", "energy")]
    assert found[0].auroc.value == pytest.approx(100 - found[1].auroc.value)


def test_an_unknown_set_is_answered_with_those_there_are(four_digits):
    with pytest.raises(ConfigError) as caught:
        generated("snow", four_digits, np.arange(3), seed=0)
    problem = caught.value.problems[0]
    assert problem.message == "no set of samples from outside is called 'snow'"
    assert problem.at == "[evaluate] ood"
    assert problem.do == "sets that are made: uniform-noise, gaussian-noise, inverted, shuffled-pixels"
