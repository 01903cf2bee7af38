"""Networks held still while they are attacked: no statistics move, no weight gradients are computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def quiet(*networks: nn.Module) -> Iterator[None]:
    """All `networks` in evaluation mode and frozen; each module's mode and each parameter's flag is put back after, also on an error.

    Evaluation mode inside the attack keeps BatchNorm's running statistics those of the data (Pang et al. 2021, arXiv:2010.00467,
    section 3.5); frozen parameters spare the attack's backward pass the weight gradients.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for network in networks for parameter in network.parameters()]
    try:
        for network in networks:
            network.eval()
            network.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
