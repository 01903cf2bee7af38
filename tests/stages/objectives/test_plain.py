import pytest
import torch

from kdpipe.stages.objectives.plain import Plain


def test_it_is_the_negative_log_probability_of_the_label():
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    by_hand = (torch.log(1 + torch.exp(torch.tensor(-2.0))) + torch.log(torch.tensor(2.0))) / 2
    assert Plain().logit_loss(student, None, torch.tensor([0, 1]), 0.0).total.item() == pytest.approx(by_hand.item())


def test_smoothed_labels_spread_their_share_over_all_classes():
    student = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    target = torch.full((4, 5), 0.1 / 5, dtype=torch.float64)
    target[torch.arange(4), labels] += 0.9
    expected = -(target * student.log_softmax(1)).sum(1).mean()
    assert Plain(label_smoothing=0.1).logit_loss(student, None, labels, 0.0).total.item() == pytest.approx(expected.item())


def test_it_asks_no_teacher(step_of):
    loss = Plain().loss(step_of(Plain(), teachers=()))
    loss.total.backward()
    assert torch.isfinite(loss.total)
