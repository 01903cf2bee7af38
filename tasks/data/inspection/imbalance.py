"""How unequal the classes are, and whether the splits agree on it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kdpipe.tasks.data.inspection.findings import Finding, Severity, SplitName

NOTABLE_RATIO = 1.5
STRONG_RATIO = 10.0
"""largest to smallest class of the training split: from here on a note, and a warning"""

LARGEST_SHIFT = 0.1
"""of the total variation distance between the class shares of two splits, in [0, 1], beyond what chance explains"""

_Z_95 = 1.959964


def imbalance_findings(counts: Mapping[SplitName, Sequence[int]], classes: Sequence[str]) -> list[Finding]:
    """The training split's imbalance, and splits whose classes are shared out otherwise than in training. `counts`: samples by class of each split."""
    found = []
    train = np.array(counts["train"], np.float64)
    ratio = imbalance_ratio(counts["train"])
    if ratio >= NOTABLE_RATIO:
        severity: Severity = "warning" if ratio >= STRONG_RATIO else "note"
        largest, smallest = int(train.argmax()), int(train.argmin())
        found.append(
            Finding(
                kind="imbalance",
                severity=severity,
                what=f"{classes[largest]!r} has {train[largest]:,.0f} training samples, {classes[smallest]!r} {train[smallest]:,.0f}: a ratio of {ratio:.1f}; "
                f"as uneven as {effective_classes(counts['train']):.1f} equal classes of {len(classes)}. Always answering {classes[largest]!r} "
                f"is right in {100 * train.max() / train.sum():.1f} %",
                do=_remedy(counts, classes, smallest),
                score=ratio,
            )
        )
    for name, own in counts.items():
        distance = class_shift(counts["train"], own)
        if name != "train" and distance > LARGEST_SHIFT + _by_chance(own):
            found.append(
                Finding(
                    kind="shift",
                    severity="warning",
                    what=f"the classes of {name} are shared out otherwise than in training: {100 * distance:.0f} % of its samples would have to change class",
                    do="draw both from one source, or judge by the accuracy of each class: the mean over samples depends on the shares",
                    score=distance,
                )
            )
    return found


def imbalance_ratio(counts: Sequence[int]) -> float:
    """The largest class's count to the smallest's, >= 1; infinite where a class is empty."""
    return max(counts) / min(counts) if min(counts) > 0 else math.inf


def effective_classes(counts: Sequence[int]) -> float:
    """The number of equal classes of the same entropy (its exponential), in [1, classes]."""
    shares = np.array(counts, np.float64)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def class_shift(first: Sequence[int], second: Sequence[int]) -> float:
    """The total variation distance between two splits' class shares, in [0, 1]."""
    a, b = np.array(first, np.float64), np.array(second, np.float64)
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def _remedy(counts: Mapping[SplitName, Sequence[int]], classes: Sequence[str], smallest: int) -> str:
    tested = counts.get("test", counts["train"])[smallest]
    width = 100 * _Z_95 * 0.5 / math.sqrt(max(1, tested))
    return (
        f"collect more of {classes[smallest]!r} first; else repeat its images in training, which augmentation then varies. Read the accuracy of each class: "
        f"with {tested:,} test samples that of {classes[smallest]!r} is known to ±{width:.0f} points at best"
    )


def _by_chance(counts: Sequence[int]) -> float:
    """About the distance that drawing so few samples at random gives."""
    return 0.5 * math.sqrt(len(counts) / max(1, sum(counts)))
