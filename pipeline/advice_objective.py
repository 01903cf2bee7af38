"""Rules `objective` and `teacher`: which objective is proposed, by paired comparisons of measured files, and the teacher that goes with it."""

import functools
from dataclasses import dataclass

from kdpipe.foundation.plugins import find
from kdpipe.pipeline.advice_facts import GOALS, NO_EVIDENCE, Choice, Facts, Goal, listed, percent_of
from kdpipe.pipeline.evidence import SMALL, Criterion, Evidence, Interval, Table

NEEDS_A_SECOND_TEACHER = frozenset({"mtard"})
"""measured, and not proposed: whether a second teacher is worth training is the user's to say"""

NOISE_THAT_COUNTS = 5.0
"""per cent of the training labels: from here on wrong labels change a choice"""

_NAMES = {"robust": "under the worst attack", "clean": "on clean samples", "corrupted": "corrupted"}


@dataclass(frozen=True)
class Candidate:
    """An objective for the student, the teacher's that goes with it, and its figure, if there is one, with where it stands."""

    objective: str
    teacher_objective: str
    figure: Interval | None
    table: str | None


def candidates(facts: Facts, evidence: Evidence, goal: Goal) -> tuple[tuple[Candidate, ...], Choice]:
    """Rule `objective`: the candidates for the goal, the proposed one first and then by their figure; and the choice of the first, in words."""
    found = evidence.table_for(facts.shape, GOALS[goal])
    if found is None:
        return _unmeasured(facts, evidence, goal)
    name, table = found
    criterion = GOALS[goal]
    usable = frozenset(table.measured(criterion)) - NEEDS_A_SECOND_TEACHER
    if goal == "attacks":  # what is right no more often than a guess when attacked is no answer to attacks
        usable = frozenset(each for each in usable if table.measured(criterion)[each][2] > 100 / len(facts.counts)) or usable
    equals = table.not_told_apart(criterion, usable)
    ranked = list(_ranked(table, criterion, usable))
    chosen, why = _among(table, equals, criterion, facts)
    ranked.remove(chosen)
    made = tuple(Candidate(each, teacher_for(each), table.measured(criterion)[each], name) for each in (chosen, *ranked))
    reach = _reach(name, table, facts) + ("; students of an ordinary teacher were not measured" if goal == "clean" else "")
    return made, Choice("objective", f"objective {chosen}", why, reach)


def _ranked(table: Table, criterion: Criterion, usable: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in table.measured(criterion) if name in usable)


def _among(table: Table, equals: tuple[str, ...], criterion: Criterion, facts: Facts) -> tuple[str, str]:
    """Of those that are not told apart: the one that sees no labels where these are wrong; the best clean one; the cheapest. With the reason."""
    best = equals[0]
    told = {name: f"{name} {percent_of(table.measured(criterion)[name])}" for name in table.measured(criterion)}
    rest = [told[name] for name in told if name not in equals]
    if len(equals) == 1:
        return best, f"{told[best]} {_NAMES[criterion]}, clearly ahead of {listed(rest) or 'nothing else measured'}"
    equal = f"{listed([told[name] for name in equals])} {_NAMES[criterion]} are not told apart"
    behind = f" ({listed(rest)} are behind)" if rest else ""
    blind = [name for name in equals if not looks_at_labels(name)]
    if blind and facts.noise is not None and (facts.noise.percent or 0.0) >= NOISE_THAT_COUNTS:
        return blind[0], f"{equal}{behind}; {blind[0]} looks at no label, and {facts.noise.percent:.0f} % of them are wrong"
    if criterion != "clean":
        cleanest = table.not_told_apart("clean", frozenset(equals))
        if len(cleanest) < len(equals):
            clean = listed([f"{name} {percent_of(table.measured('clean')[name])}" for name in table.measured("clean") if name in equals])
            chosen = min(cleanest, key=passes)
            return chosen, f"{equal}{behind}; clean they are: {clean}{_cheapest(chosen, cleanest)}"
        equals = cleanest
    chosen = min(equals, key=passes)
    return chosen, f"{equal}{behind}{_cheapest(chosen, equals)}"


def _cheapest(chosen: str, equals: tuple[str, ...]) -> str:
    others = [f"{name} {passes(name):g}" for name in equals if name != chosen]
    return f"; {chosen} needs the fewest passes a step, about {passes(chosen):g} (others: {listed(others)})" if others else ""


def _unmeasured(facts: Facts, evidence: Evidence, goal: Goal) -> tuple[tuple[Candidate, ...], Choice]:
    """No table reaches these images: what whole builds were made with, or what is customary."""
    chain = next((name for name in evidence.chains if name.startswith("digits-")), None)
    if goal == "attacks" and facts.small and chain is not None:
        objective = evidence.chains[chain].objective
        why = f"the one objective that was measured on images of up to {SMALL} pixels"
        told = f"docs/results.md, {chain}: nothing else was tried at that size, and other objectives may do as well"
    else:
        objective = {"attacks": "rslad", "corruptions": "augmix", "clean": "kd"}[goal]
        why = {"attacks": "a robust student of a robust teacher", "corruptions": "corruptions of kinds that nobody foresaw", "clean": "nobody attacks"}[goal]
        told = f"{NO_EVIDENCE} (docs/objectives.md has its source)"
    return (Candidate(objective, _customary_teacher(objective, goal), None, None),), Choice("objective", f"objective {objective}", why, told)


def _customary_teacher(objective: str, goal: Goal) -> str:
    return "plain" if goal == "clean" else teacher_for(objective) if goal == "attacks" else "plain"


def _reach(name: str, table: Table, facts: Facts) -> str:
    recipe = table.recipe
    own = "" if facts.colour == table.colour else f"; it is {'colour' if table.colour else 'grey'}, these data are not: no evidence on images like them"
    made = f"epsilon {recipe.epsilon:.4g}, {recipe.train_samples:,} training samples, {recipe.epochs} epochs, a robust teacher"
    one_seed = "one seed (how training draws change the order was not measured)"
    return f"docs/results.md, {name}: int8 files, {table.attacked} test samples attacked, {made}, {one_seed}{own}"


def teacher_for(objective: str) -> str:
    """Rule `teacher`: trained robustly where the student asks it; where it does not, plainly, as the yardstick of `clean_drop`."""
    return "trades" if asks_teacher(objective) else "plain"


def passes(objective: str) -> float:
    """About how many forward passes of the student a step with 5 attack steps costs: docs/objectives.md, τ = 3; an unknown one is as dear as the dearest."""
    tau, steps = 3.0, 5
    known: dict[str, float] = {
        "plain": 3,
        "kd": 3 + tau,
        "augmix": 9 + tau,
        "at": 2 * steps + 3,
        "ard": 2 * steps + 3 + tau,
        "trades": 2 * steps + 7,
        "mart": 2 * steps + 6,
        "rslad": 2 * steps + 6 + tau,
        "iad": 2 * steps + 6 + 2 * tau,
        "adaad": 2 * steps * (1 + tau) + 3 + tau,
    }
    return known.get(objective, max(known.values()))


@functools.cache  # finding a plug-in reads its folder
def asks_teacher(objective: str) -> bool:
    """Whether it learns from a teacher."""
    return bool(find("kdpipe.stages.objectives", objective, at="objective").needs_teacher)


@functools.cache
def trains_with_attack(objective: str) -> bool:
    """Whether an attack runs inside its step."""
    return bool(find("kdpipe.stages.objectives", objective, at="objective").robust)


def looks_at_labels(objective: str) -> bool:
    """Whether wrong labels reach the student other than through its teacher (docs/objectives.md)."""
    return objective not in {"rslad", "adaad", "alternating"}
