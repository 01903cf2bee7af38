"""`docs/advice.md`, written from the rules and the figures that they read; nothing in it is typed twice. `benchmarks/advice_evidence.py` writes it."""

from collections.abc import Iterator

from kdpipe.pipeline.advice_facts import NO_EVIDENCE
from kdpipe.pipeline.advice_rules import RULES
from kdpipe.pipeline.evidence import CRITERIA, Criterion, Evidence, Interval, evidence

_HEAD = f"""\
# What kdpipe advises, and on what grounds

`kdpipe advise` looks at the data (size, classes, uneven classes, wrong labels), the machine and the time (`--minutes`), proposes an objective,
the strength of the attack and a schedule, and tells what the build will cost here, after a trial of a few real training steps. It changes nothing;
`--write` writes the proposal as `kdpipe.toml`, where there is none. `kdpipe init` writes what the same rules propose without a budget, and runs no trial.

```console
$ kdpipe advise --data path/to/images --minutes 60
$ kdpipe advise my-project --goal corruptions --write
```

`--goal` says what the file is to be good at: `attacks` (the default), `corruptions`, or `clean` samples.

**The rules do not hold an opinion on methods.** Which objective is proposed follows from paired comparisons of measured int8 files, in
`pipeline/evidence.toml`; new figures change the advice. Where no figure reaches, the advice says "{NO_EVIDENCE}".
What the figures themselves mean: [how to read them](robustness.md).

## The rules
"""

_COST = """\
## What the cost is made of

Four steps of the teacher's and of the student's training are timed, after one that is not, in the loop that builds train with. `about` is by the median
step, `from` and `to` by the fastest and the slowest. Pruning and fine-tuning the twin are counted in epochs of the student, by the ratios below; scores
are counted in forward passes and may be half or double; export and bench are as in those builds. A budget must hold the upper end. Not in it: loading
the data, whatever else the machine does later, throttling, your own devices. On a busy machine the advice also says what the build would take alone, by
processor time.
"""


def page() -> str:
    """The whole page as Markdown."""
    known = evidence()
    return "\n".join([_HEAD, *_rules(), "", "## The figures", "", *_tables(known), *_noisy(known), _COST, *_chains(known), *_foretold(known)]) + "\n"


def _rules() -> Iterator[str]:
    yield "| rule | what it says | rests on | where that ends |"
    yield "| --- | --- | --- | --- |"
    for rule in RULES:
        yield f"| `{rule.name}` | {rule.says} | {rule.rests_on} | {rule.ends} |"


def _tables(known: Evidence) -> Iterator[str]:
    for name, table in known.tables.items():
        recipe = table.recipe
        yield f"### {name}"
        yield ""
        made = f"ε {recipe.epsilon:.4g}, {recipe.train_samples:,} training samples, {recipe.epochs} epochs, {recipe.attack_steps} attack steps"
        yield f"`python benchmarks/robust_table.py {name}`: int8 files in ONNX Runtime, {made}, {table.attacked} test samples attacked;"
        yield "per cent with 95 % intervals. The last columns are of the float student."
        yield ""
        yield "| objective | worst attack | clean | corrupted | student, PGD-20 | student, AutoAttack |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for objective in table.measured("robust"):
            row = table.rows[objective]
            figures = [_told(row.of(criterion)) for criterion in CRITERIA]
            student = [f"{value:.1f}" if value is not None else "not measured yet" for value in (row.student_pgd, row.student_autoattack)]
            yield f"| `{objective}` | {' | '.join([*figures, *student])} |"
        yield ""
        yield from (f"- {_conclusion(criterion, table.not_told_apart(criterion))}" for criterion in CRITERIA)
        yield ""


def _conclusion(criterion: Criterion, equals: tuple[str, ...]) -> str:
    what = {"robust": "under the worst attack", "clean": "on clean samples", "corrupted": "corrupted"}[criterion]
    if not equals:
        return f"{what}: not measured yet"
    names = ", ".join(f"`{name}`" for name in equals)
    return f"{what}: {names} {'is clearly the best' if len(equals) == 1 else 'are best, and not told apart'}"


def _noisy(known: Evidence) -> Iterator[str]:
    if not known.noisy:
        yield "Methods against wrong labels: not measured on human errors yet; on made ones see [wrong labels](decisions/noisy-labels.md)."
        yield ""
        return
    yield "### CIFAR-10N: students on labels of which some are wrong"
    yield ""
    yield "| labels | wrong, % | points ahead of `plain`, paired |"
    yield "| --- | --- | --- |"
    for name, found in known.noisy.items():
        ahead = ", ".join(f"`{method}` {value:+.1f} [{low:+.1f}, {high:+.1f}]" for method, (value, low, high) in found.ahead_of_plain.items())
        yield f"| {name} | {found.wrong:.0f} | {ahead} |"
    yield ""


def _chains(known: Evidence) -> Iterator[str]:
    yield "| build | objective | pruned epoch / student's | twin's epoch / student's | export, s | bench, s |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, chain in known.chains.items():
        ratios = f"{chain.prune_to_distill:.2f} | {chain.qat_to_distill:.2f}"
        yield f"| {name} | `{chain.objective}` | {ratios} | {chain.export_seconds:.1f} | {chain.bench_seconds:.1f} |"


def _foretold(known: Evidence) -> Iterator[str]:
    whole = known.foretold["whole-build"]
    yield ""
    more = f"{100 * (whole.took / whole.likely - 1):.0f} % more than foretold, {'above' if whole.took > whole.high else 'within'} its upper end"
    yield "Held against a build: `python benchmarks/advice_cost.py` asks for advice on the digits and builds that very proposal right afterwards,"
    yield f"for two targets on one thread, while other programs ran. It took {whole.took:.0f} s, {more}."
    yield "What is too low is what a build does beside its steps, which does not grow with the data: loading, calibrating, choosing channels, judging."
    yield ""
    yield "| part | foretold, s | took, s |"
    yield "| --- | --- | --- |"
    for name, part in known.foretold.items():
        yield f"| {name.replace('-', ' ')} | {part.likely:.0f} ({part.low:.0f} to {part.high:.0f}) | {part.took:.0f} |"


def _told(figure: Interval | None) -> str:
    return "not measured yet" if figure is None else f"{figure[0]:.1f} [{figure[1]:.1f}, {figure[2]:.1f}]"
