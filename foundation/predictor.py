"""The one way to ask any model for its opinion: a torch network, a twin, a file in a runtime, a remote device."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

Float32Array = npt.NDArray[np.float32]


@runtime_checkable
class Predictor(Protocol):
    """A model as a function: float32 batch (n, *sample shape) in its value range to float32 logits (n, classes)."""

    def __call__(self, batch: Float32Array) -> Float32Array:
        """The logits of the batch."""
        ...


class TorchPredictor:
    """A torch network as a `Predictor`: evaluation mode, no gradients; the network's mode is restored after each call."""

    def __init__(self, network: "nn.Module") -> None:
        self.network = network

    def __call__(self, batch: Float32Array) -> Float32Array:
        """The logits of the batch."""
        import torch  # here, so that whoever runs files alone does not wait for it

        modes = {module: module.training for module in self.network.modules()}
        self.network.eval()
        try:
            with torch.no_grad():
                logits: Float32Array = self.network(torch.from_numpy(np.ascontiguousarray(batch))).float().numpy()
                return logits
        finally:
            for module, training in modes.items():
                module.training = training
