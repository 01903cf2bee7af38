"""The rules by which `kdpipe advise` and `kdpipe init` choose; each has a name, says what it does, and names the figures that it rests on.

A rule is a function from facts and evidence to choices; `RULES` has them all in words, and `docs/advice.md` is written from it. Which objective is proposed
is written nowhere: it follows from the paired figures in `evidence.toml` (`advice_objective.py`). Where no figure reaches, `NO_EVIDENCE` stands beside it.
"""

import math
from dataclasses import dataclass

from kdpipe.pipeline.advice_facts import GOALS, NO_EVIDENCE, Choice, Facts, Goal, listed
from kdpipe.pipeline.advice_objective import NOISE_THAT_COUNTS, Candidate, asks_teacher, trains_with_attack
from kdpipe.pipeline.evidence import SMALL, Evidence
from kdpipe.pipeline.proposal import Schedule, Strength
from kdpipe.tasks.networks.named import default_networks

EPOCHS = (8, 30)
SAMPLES_TO_SEE = 40_000
"""training samples over all epochs of the student, for small images: enough for the digits to settle"""

ENOUGH_FOR_THE_RECIPE = 5_000
"""training samples from which a table's batch size and learning rate are taken; with fewer, its batches would be a dozen an epoch"""

UNEVEN = 1.5
"""largest to smallest class, from which it is told"""

TRUSTED_AGREEMENT = 85.0
"""per cent of the labels that the quick label model agrees with, from which its estimate of wrong ones is believed"""


def teacher_choice(facts: Facts, candidate: Candidate) -> Choice:
    """The same in words."""
    teacher, student = default_networks(facts.shape)
    if candidate.teacher_objective == "plain" and not asks_teacher(candidate.objective):
        because = f"{candidate.objective} asks no teacher: it is trained plainly, as the yardstick that clean_drop and the report compare with"
        return Choice("teacher", "teacher trained plainly", because, "docs/objectives.md: cost in passes, 3 instead of 2K + 7")
    if candidate.teacher_objective == "plain":
        return Choice("teacher", "teacher trained plainly", f"{candidate.objective} for {student} learns from an ordinary {teacher}", NO_EVIDENCE)
    return Choice(
        "teacher", "teacher trained with trades", f"{candidate.objective} hands on the robustness that its teacher has", _robust_teacher_evidence(candidate)
    )


def _robust_teacher_evidence(candidate: Candidate) -> str:
    if candidate.table is None:
        return "docs/results.md, digits-rslad: its teacher is trained so"
    return f"docs/results.md, {candidate.table}: the teacher of all rows is trained so; another teacher was not measured"


def strength_rule(facts: Facts, evidence: Evidence, goal: Goal) -> tuple[Strength, list[Choice]]:
    """Rules `epsilon` and `steps`: the bound and the inner attack that the figures are of."""
    found = evidence.table_for(facts.shape, GOALS[goal]) or evidence.table_for(facts.shape, "robust")
    same = found is not None and found[1].colour == facts.colour
    epsilon, because = "0.0314", "colour images: 8/255" if facts.colour else "grey images: 8/255"
    if facts.small and not facts.colour:
        epsilon, because = "0.1", "grey images: the customary bound for handwriting and clothes"
        told = "docs/results.md, digits-rslad is measured at it; how much an attacker may change is yours to say"
    elif found is not None and same:
        recipe = found[1].recipe
        told = f"docs/results.md, {found[0]} is measured at {recipe.epsilon:.4g}; how much an attacker may change is yours to say"
    else:
        told = f"{NO_EVIDENCE}; how much an attacker may change is yours to say"
    choices = [Choice("epsilon", f"epsilon {epsilon}", because, told)]
    if found is None or not same:
        return Strength(epsilon, 10), [*choices, Choice("steps", "10 attack steps in training", "what the objectives' authors train with", NO_EVIDENCE)]
    name, table = found
    recipe = table.recipe
    strength = Strength(epsilon, recipe.attack_steps, recipe.teacher_attack_steps)
    gaps = [
        row.student_pgd - row.student_autoattack for each, row in table.rows.items() if trains_with_attack(each) and row.student_pgd and row.student_autoattack
    ]
    worst = f"; AutoAttack takes at most {max(gaps):.1f} points more than PGD-20 from students trained so" if gaps else ""
    steps = f"{recipe.attack_steps} attack steps in training"
    choices.append(Choice("steps", steps, f"what the figures are of{worst}", f"docs/results.md, {name}; other numbers of steps were not measured"))
    return strength, choices


def schedule_rule(facts: Facts, evidence: Evidence, goal: Goal) -> tuple[Schedule, Choice]:
    """Rule `schedule`: as many samples seen as in the figures, within `EPOCHS`, with their batch size and learning rate."""
    low, high = EPOCHS
    found = evidence.table_for(facts.shape, GOALS[goal]) or evidence.table_for(facts.shape, "robust")
    if found is None or facts.train < ENOUGH_FOR_THE_RECIPE:
        epochs = max(low, min(high, round(SAMPLES_TO_SEE / facts.train)))
        schedule = Schedule(epochs, teacher_epochs(epochs))
        because, told = f"about {SAMPLES_TO_SEE:,} samples seen, {low} to {high} epochs; half for the larger network", NO_EVIDENCE
    else:
        name, table = found
        recipe = table.recipe
        seen = recipe.train_samples * recipe.epochs
        epochs = max(low, min(high, round(seen / facts.train)))
        rates = (recipe.learning_rate, recipe.prune_learning_rate, recipe.qat_learning_rate)
        schedule = Schedule(epochs, teacher_epochs(epochs), recipe.batch_size, *rates)
        because = (
            f"at least the {seen:,} samples that the measured students saw, {low} to {high} epochs; "
            f"batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}"
        )
        told = f"docs/results.md, {name}; longer trainings and other rates were not measured"
    return schedule, Choice("schedule", f"{schedule.teacher_epochs} epochs for the teacher, {epochs} for the student", because, told)


def teacher_epochs(epochs: int) -> int:
    """Half the student's: a step of the larger network takes some three times as long, and it settles in fewer."""
    return max(EPOCHS[0], epochs // 2)


def remarks(facts: Facts, evidence: Evidence, goal: Goal, candidate: Candidate) -> list[Choice]:
    """Rules `wrong-labels`, `imbalance`, `test-size`: what the data ask of whoever reads the figures."""
    found = [_noise_choice(facts, evidence, goal, candidate), _imbalance_choice(facts), _test_choice(facts)]
    return [choice for choice in found if choice is not None]


def _noise_choice(facts: Facts, evidence: Evidence, goal: Goal, candidate: Candidate) -> Choice | None:
    noise = facts.noise
    if noise is None:
        return None
    if noise.percent is None:
        return Choice("wrong-labels", "labels taken as they are", noise.how, "docs/data.md, how well the check finds")
    if noise.percent < NOISE_THAT_COUNTS:
        because = f"{noise.percent:.1f} % of the training labels are wrong, {noise.how}: below {NOISE_THAT_COUNTS:g} %"
        return Choice("wrong-labels", "labels taken as they are", because, f"{NO_EVIDENCE} for the limit")
    because = f"{noise.percent:.0f} % of the training labels are wrong, {noise.how}; look at them first: kdpipe data check"
    near = min(evidence.noisy.values(), key=lambda each: abs(each.wrong - (noise.percent or 0.0)), default=None)
    if near is None:
        told = "docs/decisions/noisy-labels.md: keeping the best epoch on validation, which every training does, is most of the cure"
        return Choice("wrong-labels", "the best epoch is kept", because, f"{told}; methods against wrong labels are not measured on human errors yet")
    ahead = [f"{name} {bounds[0]:+.1f} [{bounds[1]:+.1f}, {bounds[2]:+.1f}]" for name, bounds in near.ahead_of_plain.items() if bounds[1] > 0]
    told = f"docs/results.md, CIFAR-10N with {near.wrong:.0f} % wrong labels, points ahead of plain: {listed(ahead) or 'nobody beyond chance'}"
    what = f"objective {candidate.objective} kept" if goal != "clean" or not ahead else "an objective that withstands them may do better"
    return Choice("wrong-labels", what, because, told if goal == "clean" else f"{told}; together with attacks in training not measured")


def _imbalance_choice(facts: Facts) -> Choice | None:
    ratio = max(facts.counts) / max(1, min(facts.counts))
    if ratio < UNEVEN:
        return None
    because = f"the largest class has {ratio:.1f} times the samples of the smallest: read the accuracy of each class in the report"
    return Choice("imbalance", "no weights for classes", because, f"{NO_EVIDENCE}: no objective here weighs classes")


def _test_choice(facts: Facts) -> Choice:
    half = 100 * 1.96 * 0.5 / math.sqrt(facts.test)
    because = f"{facts.test:,} test samples: an accuracy is known to ±{half:.1f} points at worst, and budgets are judged by that bound"
    return Choice("test-size", "budgets left open", because, "Wilson's interval at 50 %; kdpipe samples tells how many a claim needs")


def network_choice(facts: Facts) -> Choice:
    """Rule `networks`: by the image's size and colours."""
    teacher, student = default_networks(facts.shape)
    told = "docs/results.md: the networks of its digits and Fashion-MNIST builds" if not facts.colour else NO_EVIDENCE
    return Choice("networks", f"teacher {teacher}, student {student}", f"fit images of {facts.size}", told)


def threads_choice(facts: Facts) -> Choice | None:
    """Rule `threads`: images of few pixels are too little work to share."""
    if not facts.small:
        return None
    return Choice("threads", "one thread", f"images of {facts.size} are too little work to share between cores", "docs/decisions/sleeping-threads.md")


@dataclass(frozen=True)
class Rule:
    """For the page: what a rule says, what it rests on, and where that ends."""

    name: str
    says: str
    rests_on: str
    ends: str


RULES = (
    Rule(
        "objective",
        "The objective whose int8 file has the best figure for the goal, among those above a guess. Several may not be told apart (the paired 95 % interval of "
        f"their difference holds 0): then, where at least {NOISE_THAT_COUNTS:g} % of the labels are wrong, one that looks at no label; else the best on clean "
        "samples; else the one with the fewest passes.",
        "the tables below, of the same kind of colour first",
        f"one seed; images of 28 and 32 pixels. Up to {SMALL} pixels only `rslad` was measured (the digits). "
        "`mtard` needs a second teacher and is not proposed.",
    ),
    Rule(
        "teacher",
        "Trained with `trades` where the student asks it, else plainly: it is then the yardstick of `clean_drop` alone.",
        "the teacher of all rows is trained so; [objectives](objectives.md) for the cost",
        "no other teacher was measured",
    ),
    Rule(
        "epsilon",
        f"8/255; for grey images of up to {SMALL} pixels 0.1. How much an attacker may change is the user's to say.",
        "Fashion-MNIST at 8/255 and the digits at 0.1",
        "the table of CIFAR-10 is made at 4/255: figures at another ε do not carry over",
    ),
    Rule(
        "steps",
        "As many attack steps in training as the figures are of, else 10.",
        "gap between PGD-20 and AutoAttack on students trained so",
        "no other number was tried",
    ),
    Rule(
        "schedule",
        f"As many samples seen as in the figures, {EPOCHS[0]} to {EPOCHS[1]} epochs, their batch size and rates; "
        f"below {ENOUGH_FOR_THE_RECIPE:,} training samples about {SAMPLES_TO_SEE:,} seen with the defaults. "
        "Half the epochs for the teacher, a quarter for each fine-tuning.",
        "the recipe of the table",
        "neither longer trainings nor other rates were measured; small sets: customary",
    ),
    Rule(
        "budget",
        "As many epochs as fit `--minutes`. Where the fewest do not fit: fewer training samples, down to the measured recipe; then the next objective by its "
        "figure; else nothing is proposed.",
        "the trial run's seconds; the recipe's samples and epochs, which is the least that figures are of",
        "what is lost on the way there is not measured",
    ),
    Rule(
        "networks", "The default teacher and student for the image's size.", "the networks of the digits and Fashion-MNIST builds", "colour images: customary"
    ),
    Rule(
        "threads", f"One thread for images of up to {SMALL} pixels.", "[sleeping threads](decisions/sleeping-threads.md)", "larger networks were not measured"
    ),
    Rule(
        "wrong-labels",
        f"Told from {NOISE_THAT_COUNTS:g} % wrong labels on: those made on purpose, or the estimate of a quick check of 3,000 training samples, "
        f"which is believed where its model agrees with at least {TRUSTED_AGREEMENT:g} % of the labels.",
        "[how well the check finds](data.md#how-well-it-finds): at 90 % agreement the estimate was 9.1 for 8.7 %, at 74 % half of the suspects were right "
        "labels; [wrong labels](decisions/noisy-labels.md)",
        "wrong labels together with attacks in training",
    ),
    Rule("imbalance", f"From a ratio of {UNEVEN:g} on: read the accuracy of each class.", "none", "no objective here weighs classes"),
    Rule("test-size", "Budgets are left open, with what the test split can tell.", "Wilson's interval", "–"),
)
"""In the order of the page. A choice's `rule` is one of these names; a test holds the two together."""
