import pytest
import torch

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.alternating import Alternating
from kdpipe.stages.objectives.divergence import kl_per_sample
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.rslad import Rslad

ATTACK = Attack(epsilon=0.1, steps=2)


@pytest.mark.parametrize(
    ("keys", "attacked"),
    [
        ({}, [(e, n) for e in range(4) for n in (1, 3)]),
        ({"attacked_every": 3}, [(e, 2) for e in range(4)]),
        ({"attacked_every": 1}, [(e, n) for e in range(4) for n in range(4)]),
        ({"turn": "epoch"}, [(e, n) for e in (1, 3) for n in range(4)]),
        ({"turn": "epoch", "attacked_every": 4}, [(3, n) for n in range(4)]),
    ],
    ids=str,
)
def test_the_last_of_so_many_turns_is_attacked(keys, attacked, step_of):
    objective = Alternating(attack=ATTACK, **keys)
    step = step_of(objective)
    found = []
    for step.epoch in range(4):
        for step.number in range(4):
            if objective.attacks(step):
                found.append((step.epoch, step.number))
    assert found == attacked


def test_a_clean_turn_is_plain_distillation_and_draws_nothing(step_of):
    objective = Alternating(attack=ATTACK, temperature=3, label_share=0.2)
    step = step_of(objective, number=0)
    before = step.generator.get_state()
    assert torch.equal(objective.loss(step).total, Kd(temperature=3, label_share=0.2).loss(step_of(Kd())).total)
    assert torch.equal(step.generator.get_state(), before)


def test_an_attacked_turn_is_rslads_adversarial_term(step_of):
    objective, rslad = Alternating(attack=ATTACK), Rslad(attack=ATTACK)
    ours = objective.loss(step_of(objective, number=1))
    assert ours.terms["teacher"].item() == pytest.approx(rslad.loss(step_of(rslad)).terms["adversarial"].item(), rel=1e-6)
    assert set(ours.terms) == set(objective.loss(step_of(objective, number=0)).terms)


def test_temperature_and_labels_enter_the_loss_on_the_attacked_batch(step_of):
    objective = Alternating(attack=ATTACK, temperature=3, label_share=0.2)
    step, twin = step_of(objective, number=1), step_of(objective, number=1)
    x_adv = objective.worst_case(twin, lambda logits: kl_per_sample(twin.targets, logits))
    expected = Kd(temperature=3, label_share=0.2).logit_loss(twin.student(x_adv), twin.targets, twin.labels, 0.0).total
    assert torch.equal(objective.loss(step).total, expected)


def test_the_teacher_is_asked_once_about_the_clean_batch_alone(step_of):
    objective = Alternating(attack=ATTACK)
    step = step_of(objective, number=1)
    asked = []
    step.teacher.module.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
    objective.loss(step).total.backward()
    assert len(asked) == 1
    assert torch.equal(asked[0], step.x)
    assert all(parameter.grad is None for parameter in step.teacher.module.parameters())
