"""The Kullback-Leibler divergence as every objective here takes it: summed over classes, averaged over samples, in float32.

`F.kl_div` with `reduction="mean"` also divides by the number of classes; published code that uses it has losses smaller by that factor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def widened(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 if they are that: losses are never taken in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def kl_per_sample(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) in nats; logits (batch, classes) to (batch,), float32.

    Without the factor T². Gradients reach both arguments: detach the one that is a target.
    """
    log_p = F.log_softmax(widened(teacher) / temperature, dim=1)
    log_q = F.log_softmax(widened(student) / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """`kl_per_sample` averaged over the batch; a scalar, >= 0."""
    return kl_per_sample(teacher, student, temperature).mean()
