import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.validation import Validation, chosen_accuracy, rank, selected_by, validate


def test_accuracy_and_loss_are_over_the_whole_split_in_evaluation_mode(tiny, digits):
    module = tiny().module.train()
    validation = validate(module, digits.validation, 32, None, 0, 0, "test")
    logits = module.eval()(torch.from_numpy(digits.validation.read(np.arange(100))))
    labels = torch.from_numpy(digits.validation.labels)
    assert validation.clean_accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert validation.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert validation.robust_accuracy is None


def test_it_leaves_modes_flags_and_statistics_alone(tiny, digits):
    module = tiny().module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    validate(module, digits.validation, 32, Attack(epsilon=0.1), 20, 0, "test")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_the_attack_is_the_same_each_time_and_takes_its_epsilon_from_the_objective(tiny, digits):
    module = tiny(seed=3).module
    first = validate(module, digits.validation, 32, Attack(epsilon=0.1, steps=1), 40, 0, "test")
    again = validate(module, digits.validation, 32, Attack(epsilon=0.1, steps=99), 40, 0, "test")
    huge = validate(module, digits.validation, 32, Attack(epsilon=1.0), 40, 0, "test")
    assert first == again
    assert huge.robust_accuracy <= first.robust_accuracy


@pytest.mark.parametrize(("select_by", "better"), [("clean", 0), ("robust", 1), ("balanced", 1)])
def test_networks_are_ranked_by_the_figure_that_is_asked_for(select_by, better):
    accurate, robust = Validation(clean_accuracy=0.9, robust_accuracy=0.2, loss=1.0), Validation(clean_accuracy=0.8, robust_accuracy=0.5, loss=1.0)
    ranks = rank(accurate, select_by), rank(robust, select_by)
    assert ranks.index(max(ranks)) == better
    assert chosen_accuracy(robust, select_by) == {"clean": 0.8, "robust": 0.5, "balanced": 0.65}[select_by]


def test_of_equally_accurate_networks_the_one_with_the_lower_loss_ranks_higher():
    assert rank(Validation(clean_accuracy=0.9, loss=0.3), "clean") > rank(Validation(clean_accuracy=0.9, loss=0.4), "clean")


def test_without_a_wish_networks_are_chosen_by_both_figures_where_there_is_an_attack():
    assert selected_by(None, Attack(epsilon=0.1)) == "balanced"
    assert selected_by(None, None) == "clean"
    assert selected_by("clean", Attack(epsilon=0.1)) == "clean"
