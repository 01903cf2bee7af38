"""The Kullback-Leibler divergence as every objective here takes it: summed over classes, averaged over samples, in float32.

`F.kl_div` with `reduction="mean"` also divides by the number of classes; published code that uses it has losses smaller by that factor.
"""

import torch.nn.functional as F
from torch import Tensor


def kl_per_sample(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) in nats; logits (batch, classes) to (batch,), float32.

    Without the factor T². Gradients reach both arguments: detach the one that is a target.
    """
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """`kl_per_sample` averaged over the batch; a scalar, >= 0."""
    return kl_per_sample(teacher, student, temperature).mean()
