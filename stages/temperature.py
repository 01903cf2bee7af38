"""Temperature scaling: one number that the logits are divided by, so that confidence means what it says; no label changes.

Fitted on validation by the smallest negative log-likelihood. In 1 / T that is convex, so there is one best T or none: where every label is right
(T falls to 0) or the model only guesses (T grows without end), the logits stay as they are. In the file T costs nothing: it is folded into the scales
of the last layer, whose integers stay the same; a network that ends otherwise gets a multiplication.
Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2.
"""

import copy
import operator

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, Field
from torch import fx, nn

from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.quantization.layers import FrozenLayer
from kdpipe.foundation.quantization.tracing import Boundary, module_of

LOWEST, HIGHEST = 0.05, 20.0
"""A best temperature outside of this is none: the validation split does not tell it."""

_HALVINGS = 60  # of the range of log T: exact to the last bit of float64


class Temperature(BaseModel, extra="forbid", frozen=True):
    """`temperature` in contract.json: what the file's logits were divided by, and what that did on the samples it was fitted on."""

    value: float = Field(gt=0, description="T; 1 where the logits stay as they are, then `note` says why")
    fitted_on: str = "validation"
    n: int
    nll_before: float = Field(description="mean negative log-likelihood in nats, on these samples")
    nll_after: float
    note: str | None = None

    @property
    def told(self) -> str:
        """One line for the user."""
        return self.note or f"temperature {self.value:.3f}: NLL on validation from {self.nll_before:.4f} to {self.nll_after:.4f}, n = {self.n:,}"


def fitted(logits: Float32Array, labels: npt.NDArray[np.int64]) -> Temperature:
    """The temperature with the smallest NLL on logits (n, classes) and labels (n,), n >= 1."""
    wide = logits.astype(np.float64)
    before = _nll(wide, labels)
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)  # of 1 / T
    if _slope(wide, labels, float(np.exp(high))) < 0:
        return _none(before, len(labels), "the likelihood grows with ever larger logits: nearly every label is right")
    if _slope(wide, labels, float(np.exp(low))) > 0:
        return _none(before, len(labels), "the likelihood grows with ever smaller logits: the labels are hardly better than guessed")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(wide, labels, float(np.exp(middle))) > 0 else (middle, high)
    value = float(np.exp(-(low + high) / 2))
    return Temperature(value=value, n=len(labels), nll_before=before, nll_after=_nll(wide / value, labels))


def scaled(twin: nn.Module, temperature: float) -> nn.Module:
    """A copy of the frozen `twin` whose logits are divided by `temperature`; its integers are the same."""
    result = copy.deepcopy(twin)
    assert isinstance(result, fx.GraphModule)
    output = next(node for node in result.graph.nodes if node.op == "output")
    logits = output.args[0]
    assert isinstance(logits, fx.Node), "a network returns one tensor of logits"
    last = logits
    while isinstance(module_of(last, result), Boundary | nn.Identity) and len(last.users) == 1:
        last = last.all_input_nodes[0]
    layer = module_of(last, result)
    if isinstance(layer, FrozenLayer) and len(last.users) == 1:
        _divide_(layer, temperature)
    else:
        with result.graph.inserting_before(output):
            divided = result.graph.call_function(operator.mul, (logits, 1 / temperature))
        output.replace_input_with(logits, divided)
    result.recompile()
    return result.eval()


def _divide_(layer: FrozenLayer, temperature: float) -> None:
    with torch.no_grad():
        layer.weight.div_(temperature)
        layer.weight_scale = layer.weight_scale / temperature  # per-tensor scales are one number seen several times: not in place
        layer.bias_scale = layer.bias_scale / temperature
        if layer.bias is not None:
            layer.bias.div_(temperature)


def _none(before: float, n: int, why: str) -> Temperature:
    return Temperature(value=1.0, n=n, nll_before=before, nll_after=before, note=f"not scaled: {why}, no temperature in [{LOWEST:g}, {HIGHEST:g}] is best")


def _nll(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())


def _slope(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], sharpness: float) -> float:
    """The derivative of the NLL by 1 / T at `sharpness` = 1 / T: the expected logit less the label's; it only grows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(sharpness * shifted)
    expected = (powers * shifted).sum(axis=1) / powers.sum(axis=1)
    return float((expected - shifted[np.arange(len(labels)), labels]).mean())
