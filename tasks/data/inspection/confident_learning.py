"""Which labels are probably wrong, from probabilities that no model gave for a sample that it was trained on.

Source: Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (arXiv:1911.00068), sections 3.1 and 3.2. A sample
counts for class j where its probability of j reaches the mean probability of j over the samples that are labelled j: what is asked
follows each class's own confidence, so an overconfident class does not swallow the others. Restated because cleanlab needs pandas and scikit-learn; the
tests hold it against cleanlab.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.tasks.data.splits import Int64Array

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """`joint`: estimated share of the samples with given label i and true label j, (classes, classes), sums to 1.

    `suspects`: positions of the suspected samples, the least believable label first; `suggested` and `confidence`: for each of them the likeliest
    other class and its probability; `margin`: that probability less the one of the given label.
    """

    joint: Float64Array
    suspects: Int64Array
    suggested: Int64Array
    confidence: Float64Array
    margin: Float64Array

    @property
    def noise_rate(self) -> float:
        """The estimated share of wrong labels, in [0, 1]."""
        return float(1 - np.trace(self.joint))


def find_label_errors(labels: Int64Array, probabilities: Float64Array, *, thresholds: Float64Array | None = None) -> LabelErrors:
    """The suspects, pruned by noise rate: for each pair of classes as many as the joint distribution says, those of the largest margin.

    `labels`: (n,); `probabilities`: (n, classes), rows sum to 1, out of sample. `thresholds`: another set's `class_thresholds`, for a set too small for
    its own. A suspect's suggested class has a larger probability than its given label.
    """
    classes = probabilities.shape[1]
    joint = joint_of(labels, confident_joint(labels, probabilities, class_thresholds(labels, probabilities) if thresholds is None else thresholds))
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    suspected = np.zeros(len(labels), bool)
    for given in range(classes):
        members = rows[labels == given]
        for true in range(classes):
            # Of the class's samples, not of all: the joint was scaled to the labels' counts, so both are the same number.
            wanted = round(joint[given, true] * len(labels))
            if true != given and wanted > 0 and len(members) > 0:
                margin = probabilities[members, true] - own[members]
                suspected[members[np.argsort(-margin, kind="stable")[:wanted]]] = True
    others = probabilities.copy()
    others[rows, labels] = -1.0
    best = others.argmax(axis=1).astype(np.int64)
    confidence = others[rows, best]
    found = np.flatnonzero(suspected & (confidence > own))
    found = found[np.argsort(own[found] - confidence[found], kind="stable")].astype(np.int64)
    return LabelErrors(joint, found, best[found], confidence[found], confidence[found] - own[found])


def class_thresholds(labels: Int64Array, probabilities: Float64Array) -> Float64Array:
    """The mean probability of each class over the samples labelled so, (classes,); eq. 2. 1 for a class without samples: nothing reaches it."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def confident_joint(labels: Int64Array, probabilities: Float64Array, thresholds: Float64Array) -> Int64Array:
    """How many samples labelled i are confidently of class j, (classes, classes); eq. 1. A sample that reaches several thresholds counts for its likeliest."""
    classes = probabilities.shape[1]
    reached = probabilities >= thresholds - 1e-6  # cleanlab's slack, so that a probability equal to its mean counts whatever the rounding
    likeliest = np.where(reached, probabilities, -1.0).argmax(axis=1)
    sure = reached.any(axis=1)
    pairs = labels[sure] * classes + likeliest[sure]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def joint_of(labels: Int64Array, counted: Int64Array) -> Float64Array:
    """The joint distribution of given and true label: `counted` with its rows scaled to the labels' counts, then to sum 1; eq. 3.

    A class of which no sample was confident is believed to be right.
    """
    classes = len(counted)
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    rows = counted.sum(axis=1, keepdims=True)
    believed = np.where(rows > 0, counted, np.eye(classes))
    scaled = believed / np.maximum(rows, 1) * counts[:, None]
    return np.asarray(scaled / scaled.sum())
