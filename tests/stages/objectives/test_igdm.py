import copy

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.adaad import Adaad
from kdpipe.stages.objectives.configured import as_keys, parse_objective
from kdpipe.stages.objectives.igdm import Igdm, alignment
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.stages.schedule import Scheduled

ATTACK = Attack(epsilon=0.1, steps=4)


def batchmean(teacher, student):
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")


def restated(step, base, weight):
    """The base's step, and the published module in plain words on the same x'."""
    student, teacher = copy.deepcopy(step.student), step.teacher.module
    x_adv = base.attacked(step)
    delta = x_adv - step.x
    with torch.no_grad():
        turn = teacher(step.x + delta) - teacher(step.x - delta)
    module = batchmean(turn, student(step.x + delta) - student(step.x - delta))
    return base.outer(step, x_adv).total + weight * module


@pytest.mark.parametrize("name", ["rslad", "adaad", "ard", "iad"])
def test_it_is_the_bases_step_and_the_published_module_growing_with_the_training(name, step_of):
    objective = Igdm.model_validate({"attack": ATTACK, "base": name})
    published = {"rslad": 0.9, "adaad": 5.0, "ard": 5.0, "iad": 50.0}[name]
    for progress in (0.0, 0.5):
        step, other = step_of(objective, progress=progress), step_of(objective, progress=progress)
        expected = restated(other, objective.base, published * progress)
        assert objective.loss(step).total.item() == pytest.approx(expected.item(), rel=2e-5)  # x + δ rounds


def test_without_its_weight_it_is_the_base_to_the_bit(step_of):
    objective = Igdm(attack=ATTACK, base=Adaad(), alignment_weight=Scheduled.constant(0.0))
    base = Adaad(attack=ATTACK)
    assert torch.equal(objective.loss(step_of(objective)).total, base.loss(step_of(base)).total)


def test_a_student_that_answers_as_its_teacher_has_no_alignment_loss_and_no_gradient_from_it():
    plus, minus = (torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    shift = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours = [(plus + shift).requires_grad_(), (minus + shift).requires_grad_()]  # the same turn around another answer
    value = alignment((ours[0], ours[1]), (plus, minus))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert max(one.grad.abs().max() for one in ours) < 1e-12


def test_the_alignments_gradient_is_that_of_finite_differences_and_leaves_the_teacher_alone():
    make = [torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(4)]
    assert torch.autograd.gradcheck(lambda a, b: alignment((a, b), (make[2].detach(), make[3].detach())), make[:2])
    alignment((make[0], make[1]), (make[2], make[3])).backward()
    assert make[2].grad is None
    assert make[3].grad is None


def test_it_asks_for_one_pass_more_than_its_base_and_reuses_those_on_the_attacked_batch(step_of):
    for name, students, teachers in (("rslad", 3, 3), ("adaad", 2, 2)):  # rslad: clean, x', x - δ; its teacher x, x', x - δ
        objective = Igdm.model_validate({"attack": ATTACK, "base": name, "alignment_weight": 1.0})
        step = step_of(objective)
        x_adv = objective.attacked(step)
        asked = []
        step.teacher.module.register_forward_pre_hook(lambda module, inputs, asked=asked: asked.append(inputs[0]))
        counter = step.student.get_buffer("body.bn1.num_batches_tracked")
        before = counter.item()
        step._targets.clear()
        objective.outer(step, x_adv)
        assert counter.item() == before + students
        assert len(asked) == teachers
        assert not step.student._forward_hooks


def test_the_attack_and_its_start_are_the_bases():
    assert Igdm(attack=ATTACK).base.attack == Igdm(attack=ATTACK).attack
    assert Igdm(attack=ATTACK).attack.start == "gaussian"
    assert Igdm.model_validate({"attack": ATTACK, "base": "ard"}).attack.start == "uniform"
    assert Igdm.model_validate({"attack": {"start": "uniform"}}).base.attack.start == "uniform"


def test_it_is_written_as_keys_and_read_back():
    objective = parse_objective("igdm", {"base": {"objective": "ard", "temperature": 5}, "attack": {"epsilon": 0.2}}, at="[distill]")
    keys = as_keys(objective)
    assert keys["base"]["objective"] == "ard"
    assert keys["base"]["temperature"] == 5
    assert "attack" not in keys["base"]
    assert parse_objective("igdm", {key: value for key, value in keys.items() if key != "objective"}, at="[distill]") == objective


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("kd", "base = 'kd' cannot be built upon: rslad, adaad, ard, iad can"),
        ("igdm", "base = 'igdm' cannot be built upon"),
        ("trades", "no alignment_weight is published for base = 'trades': give one"),
        ({"objective": "rslad", "attack": {"epsilon": 0.2}}, "its keys belong in [distill.attack]"),
    ],
    ids=["without an attack", "itself", "without a teacher", "with an attack of its own"],
)
def test_a_base_that_will_not_do_is_told(base, told):
    with pytest.raises(ValidationError) as caught:
        Igdm.model_validate({"base": base})
    assert told in str(caught.value)


def test_labels_are_looked_at_only_where_the_base_does(step_of):
    objective = Igdm(attack=ATTACK, base=Rslad())
    permuted = step_of(objective, labels=torch.zeros(8, dtype=torch.int64))
    assert torch.equal(objective.loss(step_of(objective)).total, objective.loss(permuted).total)
