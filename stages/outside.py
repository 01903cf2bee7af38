"""The sets from outside the task that `[evaluate] ood` names: made here, or another data set of the same sample shape."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.ood import GENERATED, Outside, generated
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.tasks.data.find import found
from kdpipe.tasks.data.partition import Shares, partitioned
from kdpipe.tasks.data.splits import DataSplits

AT = "[evaluate] ood"

_CACHE = Path(".kdpipe", "data")


def outside_sets(names: Sequence[str], samples: Samples, indices: Int64Array, *, project: Path, seed: int) -> tuple[Outside, ...]:
    """The sets in their order: those that are made follow the judged samples at `indices`, of another data set as many test samples are drawn.

    Raises ConfigError where the data cannot be used, or its samples have another shape than the judged ones.
    """
    return tuple(generated(name, samples, indices, seed=seed) if name in GENERATED else _of_data(name, samples, len(indices), project, seed) for name in names)


def outside_digests(names: Sequence[str], project: Path) -> dict[str, str]:
    """For the fingerprint: name to the digest of the data's content; a set that is made is its name."""
    return {name: name if name in GENERATED else _loaded(name, project).digest for name in names}


def _of_data(name: str, samples: Samples, n: int, project: Path, seed: int) -> Outside:
    split = _loaded(name, project).test
    ours, theirs = (pile.read(np.arange(1)).shape[1:] for pile in (samples, split))
    if ours != theirs:
        raise ConfigError(
            f"the samples of {name!r} are {theirs}, the model takes {ours}", at=AT, do=f"name data of that shape, or a set that is made: {', '.join(GENERATED)}"
        )
    count = min(n, len(split))
    return Outside(name, split, np.arange(count) if count == len(split) else np.sort(_drawn(len(split), count, seed)))


def _drawn(total: int, count: int, seed: int) -> Int64Array:
    return numpy_stream(seed, "evaluate/outside").permutation(total)[:count].astype(np.int64)


def _loaded(name: str, project: Path) -> DataSplits:
    if ":" in name:
        raise ConfigError(f"{name!r} is code, which ood does not take", at=AT, do=f"name a built-in set, a file or a folder, or one of {', '.join(GENERATED)}")
    try:
        source = found(name, path=None, project=project)
        # split by a seed of its own: which samples are asked must not change with the project's seed
        return source if isinstance(source, DataSplits) else partitioned(source, Shares(), 0, cache=project / _CACHE)
    except ConfigError as error:
        raise ConfigError.gather([type(problem)(problem.message, f"{AT}: {problem.at}", problem.do) for problem in error.problems]) from error
