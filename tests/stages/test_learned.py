import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.learned import LIMIT, RISE, Learned, learned_of
from kdpipe.stages.objectives.igdm import Igdm
from kdpipe.stages.objectives.kd import Kd, kd_loss
from kdpipe.stages.objectives.objective import weighted
from kdpipe.stages.objectives.plain import Plain
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.stages.schedule import Scheduled
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig

CURRICULUM = {"from": 1, "to": 21, "shape": "learned"}


def logits(seed):
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_where_all_is_given_nothing_is_learned():
    assert learned_of(Kd()) is None
    assert learned_of(Rslad()) is None


def test_a_temperature_begins_where_the_authors_let_it_and_outside_of_training_stays_there():
    objective = Kd.model_validate({"temperature": CURRICULUM})
    start = 1 + 20 / (1 + math.exp(-1))
    assert learned_of(objective).temperatures()["temperature"].item() == pytest.approx(start)
    assert objective.temperature.at(0.7) == pytest.approx(start)


@pytest.mark.parametrize(("progress", "strength"), [(0.0, 0.0), (RISE / 2, 0.5), (RISE, 1.0), (1.0, 1.0)])
def test_its_gradient_is_the_losss_reversed_as_far_as_the_training_has_come(progress, strength):
    objective = Kd.model_validate({"temperature": CURRICULUM, "label_share": 0})
    learned = Learned(objective)
    learned.bound(objective, progress).logit_loss(logits(0), logits(1), torch.zeros(6, dtype=torch.int64), progress).total.backward()
    position = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    temperature = 1 + 20 * torch.sigmoid(position)
    log_p, log_q = (F.log_softmax(logits(seed) / temperature, dim=1) for seed in (1, 0))
    (F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2).backward()
    assert learned.positions["temperature"].grad.item() == pytest.approx(-strength * position.grad.item(), rel=1e-5, abs=1e-12)


def test_the_students_gradient_is_that_of_the_present_temperature():
    objective = Kd.model_validate({"temperature": CURRICULUM, "label_share": 0})
    learned = Learned(objective)
    with torch.no_grad():
        learned.positions["temperature"].fill_(-1.0)
    one, other = logits(0).requires_grad_(), logits(0).requires_grad_()
    learned.bound(objective, 1.0).logit_loss(one, logits(1), torch.zeros(6, dtype=torch.int64), 1.0).total.backward()
    kd_loss(other, logits(1), 1 + 20 / (1 + math.e)).backward()
    assert torch.allclose(one.grad, other.grad, rtol=1e-5)


def test_it_reaches_the_keys_of_an_objective_within_another():
    objective = Igdm.model_validate({"base": {"objective": "ard", "temperature": CURRICULUM}})
    learned = learned_of(objective)
    assert list(learned.temperatures()) == ["base/temperature"]
    assert learned.bound(objective, 1.0).base.temperature.at(0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    assert isinstance(objective.base.temperature, Scheduled)


def test_terms_are_weighed_as_in_the_paper_and_those_of_weight_nought_stay_out():
    learned = Learned(Kd(weighting="uncertainty"))
    with torch.no_grad():
        learned.log_variances[:3] = torch.tensor([0.5, 9.0, -1.0])
    loss = weighted(one=(2.0, torch.tensor(3.0)), log=(0.0, torch.tensor(7.0)), two=(1.0, torch.tensor(0.1)))
    result = learned.weighed(loss, "here")
    assert result.total.item() == pytest.approx(math.exp(-0.5) * 2 * 3 + 0.25 + math.e * 0.1 - 0.5)
    assert result.terms["learned weight of two"].item() == pytest.approx(math.e)
    assert {"one", "log", "two"} < set(result.terms)


def test_a_term_that_vanishes_takes_no_more_than_the_limit():
    learned = Learned(Kd(weighting="uncertainty"))
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        learned.weighed(weighted(gone=(1.0, torch.tensor(1e-9)), large=(1.0, torch.tensor(2.0))), "here").total.backward()
        optimizer.step()
    result = learned.weighed(weighted(gone=(1.0, torch.tensor(1e-9)), large=(1.0, torch.tensor(2.0))), "here")
    assert result.terms["learned weight of gone"].item() == pytest.approx(math.exp(LIMIT))
    assert result.terms["learned weight of large"].item() == pytest.approx(1 / 4, rel=0.01)  # exp(-a) L + a/2 is least at exp(a) = 2 L


def test_one_term_alone_is_refused(tiny, inputs, context):
    with pytest.raises(ConfigError) as caught:
        train(tiny(), Plain(weighting="uncertainty"), None, inputs, TrainingConfig(epochs=1), context, label="teacher")
    problem = caught.value.problems[0]
    assert problem.message == "weighting = 'uncertainty' needs 2 to 8 terms, this objective has 1"
    assert problem.at == "teacher, objective 'plain'"
    assert "choose an objective with several terms" in problem.do


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"label_share": {"from": 0, "to": 1, "shape": "learned"}}, "shape = 'learned' is for temperatures"),
        ({"temperature": {"from": 4, "to": 2, "shape": "learned"}}, "shape = 'learned' needs from < to, these are 4 and 2"),
        ({"temperature": {"from": 0, "to": 2, "shape": "learned"}}, "greater than 0"),
    ],
    ids=["a share", "backwards", "from nought"],
)
def test_what_cannot_be_learned_is_told(keys, told):
    with pytest.raises(ValidationError) as caught:
        Kd.model_validate(keys)
    assert told in str(caught.value)


def test_learned_keys_are_written_and_read_back():
    objective = Kd.model_validate({"temperature": CURRICULUM, "weighting": "uncertainty"})
    assert objective.model_dump(mode="json")["temperature"] == CURRICULUM
    assert Kd.model_validate(objective.model_dump(mode="json")) == objective


def test_weights_and_temperature_move_in_training_without_decay_and_are_told(tiny, inputs, context):
    objective = Kd.model_validate({"temperature": CURRICULUM, "weighting": "uncertainty"})
    history = train(tiny(), objective, tiny(seed=1), inputs, TrainingConfig(epochs=2, batch_size=64, weight_decay=0.5), context, label="distill")
    first, last = history.epochs[0].loss, history.epochs[-1].loss
    assert {"teacher", "labels", "learned temperature", "learned weight of teacher", "learned weight of labels"} <= set(last)
    assert last["learned temperature"] != first["learned temperature"]
    assert last["learned weight of labels"] != first["learned weight of labels"]
    assert 1 < last["learned temperature"] < 21


def test_what_is_learned_has_no_dimensions_that_weight_decay_would_take():
    learned = Learned(Rslad(attack=Attack(epsilon=0.1, steps=1), weighting="uncertainty"))
    assert all(parameter.ndim < 2 for parameter in learned.parameters())  # so the optimiser spares them its weight decay
