import pytest
import torch
from torch import nn

from kdpipe.robustness.attacks.quiet import quiet


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_inside_every_module_evaluates_and_no_parameter_asks_for_a_gradient(tiny_cnn):
    teacher = nn.Linear(2, 2)
    with quiet(tiny_cnn, teacher):
        assert not any(module.training for module in [*tiny_cnn.modules(), *teacher.modules()])
        assert not any(parameter.requires_grad for parameter in [*tiny_cnn.parameters(), *teacher.parameters()])


@pytest.mark.parametrize("fails", [False, True], ids=["undisturbed", "after an error"])
def test_modes_flags_weights_and_statistics_are_as_before(tiny_cnn, fails):
    tiny_cnn.train()
    tiny_cnn[1].eval()  # a frozen BatchNorm in a network that trains
    tiny_cnn[0].weight.requires_grad_(False)
    modes = [module.training for module in tiny_cnn.modules()]
    flags = [parameter.requires_grad for parameter in tiny_cnn.parameters()]
    state = state_of(tiny_cnn)
    try:
        with quiet(tiny_cnn):
            tiny_cnn(torch.rand(4, 1, 8, 8))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [module.training for module in tiny_cnn.modules()] == modes
    assert [parameter.requires_grad for parameter in tiny_cnn.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in tiny_cnn.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_cnn.parameters())
