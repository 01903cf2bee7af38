"""A file judged in a runtime: by adversarial samples that were made elsewhere, and by searches on the file itself that start from the best of them.

A file has no gradients. What it stands is the per-sample worst of replays, of a black-box attack that is told its logits, and of one that is told its
class alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdpipe.foundation.predictor import Float32Array, Predictor
from kdpipe.robustness.attacks.method import AttackMethod, Strongest, asked, margins
from kdpipe.robustness.crafting import ALONE, CurvePoint, Replay, Work, craft
from kdpipe.robustness.evaluation import Judgement, Questions, Subject, judge
from kdpipe.robustness.masking import checks_of_file
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.stages.score import EvaluateConfig, decision_indices


@dataclass(frozen=True)
class File:
    """One file to judge. `twin`: the network that answers as it does, None where there is none; `replays`, `curve`: the adversarial samples it has to stand.

    `temperature`: what the file's logits were divided by after that, where they were.
    """

    model: str
    path: Path
    twin: Predictor | None
    replays: Sequence[Replay]
    curve: Sequence[CurvePoint]
    temperature: float | None = None


def file_judged(
    predictor: Predictor, runtime: str, file: File, samples: Samples, questions: Questions, config: EvaluateConfig, work: Work = ALONE
) -> Judgement:
    """The judgement of the file as it answers in `runtime` (`onnxruntime 1.32.0 CPU`), with the masking checks. Without replays it is searched all the same."""
    replays = list(file.replays)
    if config.attacks:
        for replay in _searched(predictor, replays, samples, questions, config, work):
            replays.append(replay)
    subject = Subject(model=file.model, form="file", runtime=runtime, size_bytes=file.path.stat().st_size, temperature=file.temperature)
    judgement = judge(predictor, samples, questions, subject, replays=replays, curve=file.curve)
    if not (config.masking and replays):
        return judgement
    checks = checks_of_file(predictor, file.twin, samples, questions, judgement, replays)
    return replace(judgement, scorecard=judgement.scorecard.model_copy(update={"masking": checks}))


def _searched(predictor: Predictor, replays: Sequence[Replay], samples: Samples, questions: Questions, config: EvaluateConfig, work: Work) -> Iterator[Replay]:
    """The searches on the file; each begins at the best of all before it, `replays` growing meanwhile."""
    searches: list[tuple[dict[str, AttackMethod], Int64Array]] = [
        (config.black_box(), questions.black_box),
        (config.decision(), decision_indices(samples, config, questions.seed)),
    ]
    for methods, indices in searches:
        for name, method in methods.items():
            start = _strongest_replayed(predictor, replays, samples.labels, indices) if replays else None
            seed, batch_size = questions.seed, questions.batch_size
            yield craft(method, name, asked(predictor), samples, indices, crafted_on="file", seed=seed, batch_size=batch_size, start=start, work=work)


def _strongest_replayed(predictor: Predictor, replays: Sequence[Replay], labels: Int64Array, indices: Int64Array) -> Float32Array:
    """For each of the samples at `indices` the replayed version that brings the file nearest to an error, or furthest into it."""
    logits_of, own = asked(predictor), torch.from_numpy(labels[indices])
    versions = [torch.from_numpy(replay.x_adv[np.searchsorted(replay.indices, indices)]) for replay in replays]
    strongest = Strongest(versions[0])
    for x_adv in versions:
        strongest.offer(x_adv, margins(logits_of(x_adv), own))
    found: Float32Array = strongest.x_adv.numpy()
    return found
