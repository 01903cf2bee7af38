"""Are the attacks to be believed? Sanity checks after Carlini et al. 2019 (arXiv:1902.06705) and Athalye et al. 2018 (arXiv:1802.00420).

A model may look robust because gradients lie, vanish or are random. Each check gives a verdict for the scorecard; a failed one
means suspected masking: the robust accuracy beside it is then an upper bound and no more.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from kdpipe.foundation.predictor import Float32Array, Predictor
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.attacks.method import AttackMethod, Logits
from kdpipe.robustness.attacks.methods.pgd import Pgd
from kdpipe.robustness.attacks.strength import strongest
from kdpipe.robustness.crafting import Replay, craft
from kdpipe.robustness.evaluation import Judgement, Questions, batches_of, stands
from kdpipe.robustness.intervals import BoolArray
from kdpipe.robustness.samples import Samples
from kdpipe.robustness.scorecard import MaskingCheck

NOISE_DRAWS = 10
HUGE_LINF = 0.5  # every pixel can be made grey: nothing is left to recognise
_HUGE_STEPS = 10
_SLACK_SHARE = 0.002  # AutoAttack's own alarm: 0.2 points (arXiv:2003.01690)
_ZERO_GRADIENT_SHARE = 0.01
_AGREED_SHARE = 0.98  # adversarial samples lie near the border, where one step of the last layer's grid decides
_REPEAT_TOLERANCE = 1e-4  # relative; AutoAttack's alarm for randomised models


def checks_of_network(
    logits_of: Logits, predictor: Predictor, samples: Samples, questions: Questions, judgement: Judgement, replays: Sequence[Replay]
) -> tuple[MaskingCheck, ...]:
    """All checks of a torch network whose attacks are `replays`, at least one of them; hold it still with `quiet` around this."""
    method = _strongest(replays).method
    survived = _survived_white_box(judgement, replays, questions)
    huge = huge_epsilon(method, samples, questions)
    felled = craft(huge, "huge", logits_of, samples, questions.black_box, crafted_on="itself", seed=questions.seed, batch_size=questions.batch_size)
    left = stands(predictor, felled.x_adv, samples.labels[questions.black_box], questions.batch_size)
    return (
        no_weaker_than_noise(survived, _noise_survival(predictor, samples, questions, method)),
        not_above_clean(judgement, replays),
        iterative_no_weaker_than_one_step(judgement, replays),
        black_box_no_better(judgement, replays, questions),
        falls_at_huge_epsilon(left, huge.epsilon, int(samples.labels.max()) + 1),
        gradients_reach_the_input(_gradient_is_zero(logits_of, samples, questions)),
        answers_repeat(predictor, samples, questions),
    )


def checks_of_file(
    predictor: Predictor, twin: Predictor | None, samples: Samples, questions: Questions, judgement: Judgement, replays: Sequence[Replay]
) -> tuple[MaskingCheck, ...]:
    """The checks that need no gradient: for a file that is judged by replays and by searches. `twin`: the network that answers as it does, if there is one."""
    method = _strongest(replays).method
    survived = _survived_white_box(judgement, replays, questions)
    return (
        no_weaker_than_noise(survived, _noise_survival(predictor, samples, questions, method)),
        not_above_clean(judgement, replays),
        black_box_no_better(judgement, replays, questions),
        answers_as_twin(predictor, twin, samples, questions, replays),
        answers_repeat(predictor, samples, questions),
    )


def no_weaker_than_noise(survived: BoolArray, noise_survived: BoolArray) -> MaskingCheck:
    """Attack (all that use gradients, per sample) against the worst of ten random changes of the same size, on the same samples."""
    detail = f"attacks leave {_percent(survived)}, the worst of {NOISE_DRAWS} random changes {_percent(noise_survived)}, n = {len(survived)}"
    return MaskingCheck(name="attacks are no weaker than random noise", passed=_no_more(survived, noise_survived), detail=detail)


def not_above_clean(judgement: Judgement, replays: Sequence[Replay]) -> MaskingCheck:
    """Accuracy under each attack alone against clean accuracy on the same samples."""
    rows = []
    for replay in replays:
        clean = judgement.correct["clean"][replay.indices]
        rows.append((float(judgement.survived[replay.name, replay.crafted_on].mean() - clean.mean()), f"{replay.name} from {replay.crafted_on}", clean))
    excess, name, clean = max(rows, key=lambda row: row[0])
    return MaskingCheck(
        name="accuracy under attack is not above clean accuracy",
        passed=excess <= _slack(len(clean)),
        detail=f"closest: {name}, {100 * excess:+.1f} points against {_percent(clean)} clean, n = {len(clean)}",
    )


def iterative_no_weaker_than_one_step(judgement: Judgement, replays: Sequence[Replay]) -> MaskingCheck:
    """All attacks of one step together, per sample, against all of many steps."""
    name = "many steps are no weaker than one"
    one = [replay for replay in replays if replay.method.needs_gradients and replay.method.steps == 1]
    many = [replay for replay in replays if replay.method.needs_gradients and replay.method.steps > 1]
    if not one or not many:
        return MaskingCheck(name=name, passed=None, detail="needs a one-step attack (fgsm) and one of many steps (pgd-20) in [evaluate] attacks")
    first, other = (np.logical_and.reduce([judgement.survived[replay.name, replay.crafted_on] for replay in group]) for group in (one, many))
    detail = f"{one[0].name} leaves {_percent(first)}, {many[0].name} {_percent(other)}, n = {len(first)}"
    return MaskingCheck(name=name, passed=_no_more(other, first), detail=detail)


def black_box_no_better(judgement: Judgement, replays: Sequence[Replay], questions: Questions) -> MaskingCheck:
    """How many samples that stood against all attacks with gradients fall to those that only ask the model."""
    name = "a black-box attack finds no more than the others"
    black = [replay for replay in replays if not replay.method.needs_gradients]
    if not black:
        return MaskingCheck(name=name, passed=None, detail="no black-box attack was run")
    if len(black) == len(replays):
        return MaskingCheck(name=name, passed=None, detail="nothing to compare with: no attack had gradients to follow")
    stood = _survived_white_box(judgement, replays, questions)
    felled = np.zeros_like(stood)
    for replay in black:
        felled[np.searchsorted(questions.black_box, replay.indices)] |= ~judgement.survived[replay.name, replay.crafted_on]
    felled &= stood
    names = " and ".join(dict.fromkeys(replay.name for replay in black))
    detail = f"{names} {'fells' if len(black) == 1 else 'fell'} {int(felled.sum())} of the {int(stood.sum())} that the others leave, n = {len(stood)}"
    return MaskingCheck(name=name, passed=float(felled.mean()) <= _slack(len(felled)), detail=detail)


def answers_as_twin(predictor: Predictor, twin: Predictor | None, samples: Samples, questions: Questions, replays: Sequence[Replay]) -> MaskingCheck:
    """How often file and twin name the same class under the strongest replayed attack: replays say little of a file that differs from its twin."""
    name = "the file answers as its twin under attack"
    replay = _strongest(replays)
    if twin is None or not replay.method.needs_gradients:
        return MaskingCheck(name=name, passed=None, detail="there is no twin of this file: nothing was crafted on a network that answers as it does")
    same = []
    for begin in range(0, len(replay.x_adv), questions.batch_size):
        x_adv = replay.x_adv[begin : begin + questions.batch_size]
        same.append(predictor(x_adv).argmax(axis=1) == twin(x_adv).argmax(axis=1))
    agreed = np.concatenate(same)
    detail = f"{_percent(agreed)} equal classes on {replay.name} from {replay.crafted_on}, at least {100 * _AGREED_SHARE:g} % are needed, n = {len(agreed)}"
    return MaskingCheck(name=name, passed=float(agreed.mean()) >= _AGREED_SHARE, detail=detail)


def falls_at_huge_epsilon(left: BoolArray, epsilon: float, classes: int) -> MaskingCheck:
    """Accuracy where the ball holds an image without content: no better than guessing."""
    detail = f"{_percent(left)} at ε = {epsilon:g}, at most {100 / classes:.1f} % is expected, n = {len(left)}"
    return MaskingCheck(name="accuracy falls to chance at a huge epsilon", passed=float(left.mean()) <= 1 / classes, detail=detail)


def gradients_reach_the_input(zero: BoolArray) -> MaskingCheck:
    """The share of samples whose cross-entropy has no input gradient at all."""
    detail = f"{_percent(zero)} of the samples have none, n = {len(zero)}"
    return MaskingCheck(name="gradients reach the input", passed=float(zero.mean()) <= _ZERO_GRADIENT_SHARE, detail=detail)


def answers_repeat(predictor: Predictor, samples: Samples, questions: Questions) -> MaskingCheck:
    """The same batch asked twice: logits may differ by 1e-4 of their length."""
    x = samples.read(questions.black_box[: questions.batch_size])
    first, second = predictor(x).astype(np.float64), predictor(x).astype(np.float64)
    length = np.maximum(np.linalg.norm(first, axis=1), np.finfo(np.float64).tiny)
    apart = float((np.linalg.norm(first - second, axis=1) / length).max())
    return MaskingCheck(
        name="equal questions get equal answers", passed=apart <= _REPEAT_TOLERANCE, detail=f"largest relative change of logits {apart:.1e}, n = {len(x)}"
    )


def huge_epsilon(method: AttackMethod, samples: Samples, questions: Questions) -> Pgd:
    """PGD-10 at epsilon 0.5 for linf (1 where the configured one is that large), for l2 at half the diagonal of the value range."""
    size = samples.read(questions.black_box[:1])[0].size
    usual = HUGE_LINF if method.norm == "linf" else HUGE_LINF * math.sqrt(size)
    return Pgd(norm=method.norm, epsilon=usual if method.epsilon < usual else min(2 * usual, 2 * method.epsilon), steps=_HUGE_STEPS)


def _strongest(replays: Sequence[Replay]) -> Replay:
    found = strongest(replays, lambda replay: replay.method)
    assert found is not None, "there is nothing to check without an attack"
    return found


def _survived_white_box(judgement: Judgement, replays: Sequence[Replay], questions: Questions) -> BoolArray:
    """Which of the black-box samples stand against every replayed attack that used gradients, and are right when clean."""
    survived = judgement.correct["clean"][questions.black_box].copy()
    for replay in replays:
        if replay.method.needs_gradients:
            survived &= judgement.survived[replay.name, replay.crafted_on][np.searchsorted(replay.indices, questions.black_box)]
    return survived


def _noise_survival(predictor: Predictor, samples: Samples, questions: Questions, method: AttackMethod) -> BoolArray:
    """Right under each of ten random changes of full size (linf: random signs, l2: random directions), on the black-box samples."""
    x, labels = samples.read(questions.black_box), samples.labels[questions.black_box]
    survived = np.ones(len(x), dtype=np.bool_)
    for draw in range(NOISE_DRAWS):
        generator = numpy_stream(questions.seed, f"masking/noise-{draw}")
        noise: Float32Array = generator.standard_normal(x.shape, dtype=np.float32)
        if method.norm == "linf":
            noise = np.sign(noise)
        else:
            noise /= np.linalg.norm(noise.reshape(len(x), -1), axis=1).reshape(-1, *(1,) * (x.ndim - 1))
        survived &= stands(predictor, np.clip(x + np.float32(method.epsilon) * noise, 0, 1), labels, questions.batch_size)
    return survived


def _gradient_is_zero(logits_of: Logits, samples: Samples, questions: Questions) -> BoolArray:
    parts = []
    for chosen in batches_of(questions.black_box, questions.batch_size):
        x = torch.from_numpy(samples.read(chosen)).requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits_of(x), torch.from_numpy(samples.labels[chosen]), reduction="sum")
            # a model that cuts its graph (rounding, a detached layer) has no gradient to ask for
            gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
        parts.append(np.ones(len(chosen), dtype=np.bool_) if gradient is None else (gradient.flatten(1) == 0).all(dim=1).numpy())
    return np.concatenate(parts)


def _no_more(ours: BoolArray, theirs: BoolArray) -> bool:
    """Whether `ours` stand no more often than `theirs`, up to the slack."""
    return float(ours.mean() - theirs.mean()) <= _slack(len(ours))


def _slack(n: int) -> float:
    """0.2 points, but never less than one sample: one of 200 is half a point."""
    return max(_SLACK_SHARE, 1 / n) + 1e-9


def _percent(right: BoolArray) -> str:
    return f"{100 * float(right.mean()):.1f} %"
