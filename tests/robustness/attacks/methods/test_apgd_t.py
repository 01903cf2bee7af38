import numpy as np
import pytest
import torch

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.attacks.method import Draws, parse_attack
from kdpipe.robustness.attacks.methods.apgd_t import targeted_dlr


def test_the_loss_by_hand():
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, 0.0], [2.0, 4.0, 1.0, 8.0, 0.0]])
    # own and target 5 and 1, then 1 and 8; the gap from the largest to the mean of third and fourth
    expected = torch.tensor([-4 / 3.5, 7 / 6.5])
    torch.testing.assert_close(targeted_dlr(logits, torch.tensor([0, 2]), torch.tensor([1, 3])), expected)


def test_the_loss_does_not_change_with_scale_and_shift_of_the_logits():
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    labels, targets = torch.arange(6), torch.full((6,), 6)
    torch.testing.assert_close(targeted_dlr(40 * logits - 3, labels, targets), targeted_dlr(logits, labels, targets), atol=1e-5, rtol=1e-4)


def test_the_loss_is_finite_where_all_logits_tie():
    logits = torch.zeros(1, 5, requires_grad=True)
    loss = targeted_dlr(logits, torch.tensor([0]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_than_four_classes_are_refused(classes):
    attack = parse_attack("apgd-t", norm="linf", epsilon=0.1, at="here")
    with pytest.raises(ConfigError) as caught:
        attack.craft(lambda x: x[:, :classes], torch.rand(2, 5), torch.tensor([0, 1]), Draws(0, "test", np.arange(2)))
    problem = caught.value.problems[0]
    assert problem.message == f"'apgd-t' needs 4 classes, the model has {classes}: the DLR loss looks at the four largest logits"
    assert problem.at == "[evaluate] attacks"
    assert problem.do == "write 'apgd-cw' in its place, or 'autoattack', which does so by itself"


@pytest.mark.parametrize("classes", [4, 12])
def test_each_of_the_nine_likeliest_other_classes_is_tried_while_the_model_stands(classes):
    asked = 0

    def logits_of(x):
        nonlocal asked
        asked += 1
        return x[:, :classes] + 50 * torch.eye(classes)[0]  # class 0 stands at any rate

    attack = parse_attack("apgd-t-7x2", norm="linf", epsilon=0.1, at="here")
    attack.craft(logits_of, torch.rand(3, 12), torch.zeros(3, dtype=torch.int64), Draws(0, "test", np.arange(3)))
    assert asked == 1 + min(classes - 1, 9) * 2 * (7 + 1)  # the clean logits; each run's steps and its last point


def test_a_saturated_model_is_felled_where_the_cross_entropy_has_no_gradient(robust_net, unseen):
    steep = lambda x: 1e5 * robust_net(x)  # noqa: E731
    x, labels = torch.from_numpy(unseen.images[:100]), torch.from_numpy(unseen.labels[:100])
    standing = {}
    for name in ("apgd-ce-10", "apgd-t-10"):
        x_adv = parse_attack(name, norm="linf", epsilon=0.2, at="here").craft(steep, x, labels, Draws(0, "test", np.arange(100)))
        standing[name] = (robust_net(x_adv).argmax(1) == labels).float().mean()
    assert standing["apgd-t-10"] < standing["apgd-ce-10"] - 0.1
