import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.validation import validate


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
