import pytest
import torch

from kdpipe.robustness.attacks import pgd
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.gradients import objective_gradients
from kdpipe.stages.objectives.hierarchical import Hierarchical
from kdpipe.stages.objectives.plain import Plain
from kdpipe.stages.objectives.rslad import Rslad
from kdpipe.tasks.data.batches import batches


def test_it_is_the_sum_over_the_batches_with_batchnorm_at_rest(tiny, inputs, context):
    network = tiny()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    got = objective_gradients(network, Plain(), (), inputs, context, 200, 1, label="prune")
    (batch,) = batches(inputs.data.train, 200)
    torch.nn.functional.cross_entropy(network.module.eval()(batch.x), batch.labels).backward()
    for name, parameter in network.module.named_parameters():
        assert torch.allclose(got[name], parameter.grad, rtol=1e-3, atol=1e-5), name  # the batch is summed in another order
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())


def test_each_batch_is_attacked_where_the_objective_attacks(tiny, inputs, context, monkeypatch):
    steps = []
    original = pgd.losses_and_gradient
    monkeypatch.setattr(pgd, "losses_and_gradient", lambda *arguments: steps.append(1) or original(*arguments))
    objective_gradients(tiny(), Rslad(attack=Attack(epsilon=0.1, steps=3)), (tiny(seed=1),), inputs, context, 64, 2, label="prune")
    assert len(steps) == 2 * 3


def test_robust_scores_are_not_clean_scores(tiny, inputs, context):
    clean = objective_gradients(tiny(), Plain(), (), inputs, context, 64, 2, label="prune")
    robust = objective_gradients(tiny(), Rslad(attack=Attack(epsilon=0.1, steps=3)), (tiny(seed=1),), inputs, context, 64, 2, label="prune")
    cosine = torch.nn.functional.cosine_similarity(torch.cat([g.flatten() for g in clean.values()]), torch.cat([g.flatten() for g in robust.values()]), dim=0)
    assert cosine < 0.99


@pytest.mark.parametrize("objective", [Hierarchical(match="features"), Rslad(attack=Attack(epsilon=0.1, steps=1))], ids=["hierarchical", "rslad"])
def test_twice_the_same_gives_the_same_bits(objective, tiny, inputs, context):
    first, again = (objective_gradients(tiny(), objective, (tiny(seed=1),), inputs, context, 64, 2, label="prune") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
