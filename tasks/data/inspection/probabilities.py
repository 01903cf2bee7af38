"""Out-of-sample class probabilities from a quick model: ridge regression on patch features, in closed form, one for each fold.

Least squares on labels is hardly moved by single wrong ones, needs no epochs, and all folds come from the same sums of products: the features of each image are
computed once. Scores become probabilities by a softmax whose one temperature is fitted on the out-of-fold scores (Guo et al. 2017, arXiv:1706.04599).
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdpipe.tasks.data.inspection.features import Encoder
from kdpipe.tasks.data.inspection.pixels import Counted
from kdpipe.tasks.data.splits import Int64Array

FOLDS = 5
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # relative to the features' mean variance, times the number of samples
_ROWS = 512
_TEMPERATURES = np.geomspace(0.02, 1.0, 60)

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OutOfSample:
    """`probabilities`: (n, classes), of the training samples by the models of the other folds, of the others by the mean of all folds' models.

    `accuracy`: agreement with the given training labels, in [0, 1].
    """

    probabilities: Float64Array
    accuracy: float
    folds: int


def folds_of(labels: Int64Array, groups: Int64Array, count: int = FOLDS) -> Int64Array:
    """The fold of each sample, (n,), even in each class; copies of one image (equal `groups`) share a fold, or a copy would vouch for a wrong label."""
    fold_of_group: dict[int, int] = {}
    seen: dict[int, int] = {}
    folds = np.empty(len(labels), np.int64)
    for place, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
        if group not in fold_of_group:
            fold_of_group[group] = seen.get(label, 0) % count
            seen[label] = seen.get(label, 0) + 1
        folds[place] = fold_of_group[group]
    return folds


def out_of_sample(
    thumbnails: npt.NDArray[np.uint8],
    positions: Int64Array,
    labels: Int64Array,
    folds: Int64Array,
    classes: int,
    encoder: Encoder,
    folder: Path,
    counted: Counted,
) -> OutOfSample:
    """The probabilities of the samples at `positions`, all arrays (n,) in that order. `folds` < 0: not trained on (validation, test).

    `folder`: where the features wait, in a temporary file.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        sums = _Sums.empty(int(folds.max()) + 1, encoder.features + 1, classes)
        starts = range(0, len(positions), _ROWS)
        for start in counted(starts, "features", len(starts)):
            rows = slice(start, start + _ROWS)
            x = encoder.encode(np.asarray(thumbnails[positions[rows]]))
            file.write(x.half().numpy().tobytes())
            sums.add_(x.half().float(), labels[rows], folds[rows])
        models = _models(sums)
        file.seek(0)
        scores = np.empty((len(_PENALTIES), len(positions), classes))
        for start in starts:
            rows = slice(start, start + _ROWS)
            content = file.read(len(positions[rows]) * encoder.features * 2)
            x = torch.from_numpy(np.frombuffer(bytearray(content), np.float16).reshape(-1, encoder.features)).float()
            scores[:, rows] = _scored(_with_one(x), folds[rows], models).numpy()
    inside = folds >= 0
    errors = [((score[inside] - np.eye(classes)[labels[inside]]) ** 2).mean() for score in scores]
    chosen = scores[int(np.argmin(errors))]
    accuracy = float((chosen[inside].argmax(axis=1) == labels[inside]).mean())
    return OutOfSample(_probabilities(chosen, labels, inside), accuracy, len(models))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of each fold: products of the features (folds, d, d), and of features and classes (folds, d, classes); the last feature is the constant 1."""

    squares: Tensor
    targets: Tensor

    @classmethod
    def empty(cls, folds: int, size: int, classes: int) -> "_Sums":
        return cls(torch.zeros(folds, size, size), torch.zeros(folds, size, classes))

    def add_(self, x: Tensor, labels: Int64Array, folds: Int64Array) -> None:
        """Add a batch, x (batch, d - 1)."""
        x = _with_one(x)
        for fold in np.unique(folds[folds >= 0]):
            mine = torch.from_numpy(np.flatnonzero(folds == fold))
            own = x[mine]
            self.squares[fold] += own.T @ own
            hot = torch.nn.functional.one_hot(torch.from_numpy(labels)[mine], self.targets.shape[2]).float()
            self.targets[fold] += own.T @ hot


def _models(sums: _Sums) -> Tensor:
    """Weights, (folds, penalties, d, classes), each from all folds but one; the constant is not penalised."""
    squares, targets = sums.squares.double().sum(dim=0), sums.targets.double().sum(dim=0)
    models = []
    for own_squares, own_targets in zip(sums.squares.double(), sums.targets.double(), strict=True):
        gram, right = squares - own_squares, targets - own_targets
        count = gram[-1, -1]
        mean = gram[:-1, -1] / count
        covariance = gram[:-1, :-1] / count - torch.outer(mean, mean)
        scale = covariance.diagonal().mean()
        cross = right[:-1] / count - torch.outer(mean, right[-1] / count)
        weights = []
        for penalty in _PENALTIES:
            ridge = covariance + penalty * scale * torch.eye(len(covariance), dtype=torch.float64)
            solved = torch.cholesky_solve(cross, torch.linalg.cholesky(ridge))
            weights.append(torch.cat([solved, (right[-1] / count - mean @ solved)[None]]))
        models.append(torch.stack(weights))
    return torch.stack(models).float()


def _scored(x: Tensor, folds: Int64Array, models: Tensor) -> Tensor:
    """(penalties, batch, classes): of each sample by its own fold's model, of those without a fold by the mean of all."""
    scores = models.new_empty(models.shape[1], len(x), models.shape[3])
    for fold in np.unique(folds):
        mine = torch.from_numpy(np.flatnonzero(folds == fold))
        scores[:, mine] = torch.matmul(x[mine], models[fold] if fold >= 0 else models.mean(dim=0))
    return scores


def _probabilities(scores: Float64Array, labels: Int64Array, inside: npt.NDArray[np.bool_]) -> Float64Array:
    """The softmax of scores over a temperature: the one that explains the given training labels best."""
    losses = [-np.log(_softmax(scores[inside] / t)[np.arange(inside.sum()), labels[inside]] + 1e-12).mean() for t in _TEMPERATURES]
    return _softmax(scores / _TEMPERATURES[int(np.argmin(losses))])


def _softmax(scores: Float64Array) -> Float64Array:
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)
