"""What is proposed follows from figures, is told with them, fits the budget, and changes nothing."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline import advice, cli
from kdpipe.pipeline.advice_facts import NO_EVIDENCE, Facts, Noise
from kdpipe.pipeline.advice_objective import candidates
from kdpipe.pipeline.advice_page import page
from kdpipe.pipeline.advice_rules import RULES, remarks
from kdpipe.pipeline.config import assemble
from kdpipe.pipeline.estimate import Sizes, estimated
from kdpipe.pipeline.evidence import EVIDENCE_FILE, Chain, Evidence, NoisyLabels, Recipe, Row, Table, evidence
from kdpipe.pipeline.init import proposed
from kdpipe.pipeline.proposal import text_of
from kdpipe.pipeline.stages import load_stages
from kdpipe.pipeline.toml_source import parse_toml
from kdpipe.pipeline.trial import Timed, Trial, run_trial

ROOT = Path(__file__).parents[2]
CLOTHES = Facts("fashion-mnist", (1, 28, 28), (5400,) * 10, 54_000, 6_000, 10_000)
PHOTOGRAPHS = Facts("cifar10", (3, 32, 32), (4500,) * 10, 45_000, 5_000, 10_000)
DIGITS = Facts("digits", (1, 8, 8), (108,) * 10, 1_079, 179, 539)
RECIPE = Recipe(
    train_samples=10_000,
    epochs=10,
    batch_size=128,
    learning_rate=0.1,
    prune_learning_rate=0.03,
    qat_learning_rate=0.01,
    epsilon=8 / 255,
    attack_steps=5,
    teacher_attack_steps=4,
)
CHAIN = Chain(epsilon=0.1, objective="rslad", qat_to_distill=1.5, prune_to_distill=1.1, export_seconds=5.0, bench_seconds=13.0)
TRIAL = Trial(Timed(128, (0.2, 0.3, 0.4), 1.0, 1e-4), Timed(128, (0.1, 0.15, 0.2), 0.5, 5e-5), 5.0, 1.0)


def measured(*, apart: float = 1.0, clean_apart: float = 1.0) -> Evidence:
    """A table of four: `trades`, `at` and `rslad` a tenth of a point from each other under attack, `plain` below a guess; the intervals as wide as told."""
    robust = {"trades": 60.2, "at": 60.1, "rslad": 60.0, "plain": 4.0}
    clean = {"trades": 80.0, "at": 82.0, "rslad": 80.0, "plain": 90.0}

    def pairs(figures: dict[str, float], half: float) -> dict[str, dict[str, tuple[float, float, float]]]:
        ranked = sorted(figures, key=lambda name: -figures[name])
        return {
            first: {second: (gap := figures[first] - figures[second], gap - half, gap + half) for second in ranked[place + 1 :]}
            for place, first in enumerate(ranked[:-1])
        }

    rows = {name: Row(clean=(clean[name],) * 3, robust=(robust[name],) * 3, student_pgd=61.0, student_autoattack=60.0) for name in robust}
    table = Table(colour=False, recipe=RECIPE, attacked=500, rows=rows, ahead={"robust": pairs(robust, apart), "clean": pairs(clean, clean_apart)})
    return Evidence(tables={"fashion-mnist": table}, chains={"digits-rslad": CHAIN})


def problem_of(*arguments: object, **named: object) -> tuple[str, str | None, str | None]:
    with pytest.raises(ConfigError) as caught:
        advice.advise(*arguments, **named)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    return problem.message, problem.at, problem.do


@pytest.fixture
def quick_trial(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A trial of known seconds, since a budget must not depend on who else uses the machine; the objectives that were asked for."""
    asked: list[str] = []

    def known(config: object, data: object, threads: int) -> Trial:
        asked.append(config.sections["distill"].objective.name)  # type: ignore[attr-defined]
        return TRIAL

    monkeypatch.setattr(advice, "run_trial", known)
    return asked


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 60, (90, 8, 8), dtype=np.uint8) + (60 * (np.arange(90) % 3)).astype(np.uint8)[:, None, None]
    np.savez(tmp_path / "shapes.npz", images=images, labels=np.arange(90) % 3)
    return tmp_path / "shapes.npz"


def test_evidence_and_page_are_what_the_raw_figures_give() -> None:
    spec = importlib.util.spec_from_file_location("advice_evidence", ROOT / "benchmarks" / "advice_evidence.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    again = "run python benchmarks/advice_evidence.py"
    assert EVIDENCE_FILE.read_text() == writer.text_of(writer.gathered(writer.RESULTS)), again
    assert (ROOT / "docs" / "advice.md").read_text() == page(), again


def test_of_those_not_told_apart_the_best_on_clean_samples_is_proposed_and_all_are_named() -> None:
    ranked, choice = candidates(CLOTHES, measured(), "attacks")
    assert [candidate.objective for candidate in ranked] == ["at", "trades", "rslad"]
    assert ranked[0].teacher_objective == "plain"
    assert "trades 60.2 %" in choice.because
    assert "rslad 60.0 % [60.0, 60.0] under the worst attack are not told apart" in choice.because
    assert "one seed" in choice.evidence


def test_where_clean_accuracy_does_not_decide_the_cheapest_is_proposed() -> None:
    ranked, choice = candidates(CLOTHES, measured(clean_apart=5.0), "attacks")
    assert ranked[0].objective == "at"
    assert "at needs the fewest passes a step, about 13" in choice.because


def test_what_is_clearly_ahead_is_proposed_whatever_it_costs() -> None:
    ranked, choice = candidates(CLOTHES, measured(apart=0.05), "attacks")
    assert ranked[0].objective == "trades"
    assert "clearly ahead of at 60.1 %" in choice.because


def test_wrong_labels_decide_for_an_objective_that_looks_at_none() -> None:
    noisy = replace(CLOTHES, noise=Noise(20.0, "made so"))
    ranked, choice = candidates(noisy, measured(), "attacks")
    assert (ranked[0].objective, ranked[0].teacher_objective) == ("rslad", "trades")
    assert "rslad looks at no label, and 20 % of them are wrong" in choice.because
    assert candidates(replace(CLOTHES, noise=Noise(2.0, "made so")), measured(), "attacks")[0][0].objective == "at"


def test_what_is_no_better_than_a_guess_under_attack_is_never_proposed_for_attacks() -> None:
    assert "plain" not in [candidate.objective for candidate in candidates(CLOTHES, measured(), "attacks")[0]]
    assert candidates(CLOTHES, measured(), "clean")[0][0].objective == "plain"


@pytest.mark.parametrize("goal", ["attacks", "corruptions", "clean"])
def test_without_any_figure_the_choice_is_called_customary(goal: str) -> None:
    _, choice = candidates(CLOTHES, Evidence(), goal)  # type: ignore[arg-type]
    assert choice.evidence.startswith(NO_EVIDENCE)


def test_small_images_and_other_colours_say_how_far_the_figures_reach() -> None:
    _, small = candidates(DIGITS, measured(), "attacks")
    assert small.what == "objective rslad"
    assert "nothing else was tried at that size" in small.evidence
    _, colour = candidates(PHOTOGRAPHS, measured(), "attacks")
    assert colour.evidence.endswith("it is grey, these data are not: no evidence on images like them")


def test_human_label_errors_are_told_with_what_helped_and_what_was_not_measured() -> None:
    table = NoisyLabels(wrong=17.0, clean={"plain": (60, 59, 61)}, ahead_of_plain={"gce": (2.0, 1.0, 3.0), "sce": (0.5, -0.5, 1.5)})
    known = measured().model_copy(update={"noisy": {"random1": table}})
    facts = replace(CLOTHES, noise=Noise(20.0, "estimated"))
    (found,) = [choice for choice in remarks(facts, known, "attacks", candidates(facts, known, "attacks")[0][0]) if choice.rule == "wrong-labels"]
    assert "gce +2.0 [+1.0, +3.0]" in found.evidence
    assert "sce" not in found.evidence
    assert found.evidence.endswith("together with attacks in training not measured")


@pytest.mark.parametrize("goal", ["attacks", "corruptions", "clean"])
@pytest.mark.parametrize("facts", [CLOTHES, PHOTOGRAPHS, DIGITS, replace(CLOTHES, counts=(9_000,) * 5 + (1_800,) * 5)], ids=["28", "colour", "8", "uneven"])
@pytest.mark.parametrize("known", [evidence(), measured(), Evidence()], ids=["shipped", "four rows", "none"])
def test_every_choice_is_of_a_written_rule_and_every_proposal_is_a_configuration_without_a_mistake(
    goal: str, facts: Facts, known: Evidence, tmp_path: Path
) -> None:
    for candidate in candidates(facts, known, goal)[0]:  # type: ignore[arg-type]
        proposal, choices = proposed("image-classification", facts, known, goal, candidate)  # type: ignore[arg-type]
        told = [*choices, *remarks(facts, known, goal, candidate)]  # type: ignore[arg-type]
        assert {choice.rule for choice in told} <= {rule.name for rule in RULES}
        assert all(choice.what and choice.because and choice.evidence for choice in told)
        config = assemble(tmp_path, parse_toml(text_of(proposal), "kdpipe.toml"), load_stages(), ())
        distill = config.sections["distill"]
        assert distill.objective.name == candidate.objective
        assert config.sections["evaluate"].epsilon == (None if proposal.attacked_in_training else float(proposal.strength.epsilon))


@settings(max_examples=25, deadline=None)
@given(minutes=st.floats(1, 400), share=st.floats(0.02, 1))
def test_what_is_proposed_fits_the_budget_by_its_upper_bound_and_more_time_never_buys_less(minutes: float, share: float) -> None:
    known = measured()
    proposal, _ = proposed("image-classification", CLOTHES, known, "attacks")
    fitted, cost, choice = advice._fitted(proposal, TRIAL, CLOTHES, known, minutes)
    shorter, less, _ = advice._fitted(proposal, TRIAL, CLOTHES, known, minutes * share)
    if fitted is None:
        assert cost.high > 60 * minutes
        assert shorter is None
    else:
        assert choice is not None
        assert cost.low <= cost.likely <= cost.high <= 60 * minutes
        seen = fitted.schedule.epochs * (fitted.schedule.train_samples or CLOTHES.train)
        assert seen >= RECIPE.epochs * RECIPE.train_samples
        assert shorter is None or shorter.schedule.epochs * (shorter.schedule.train_samples or CLOTHES.train) <= seen
        assert shorter is None or less.high <= cost.high


def test_a_cost_is_the_steps_of_the_trial_times_the_steps_of_the_schedule() -> None:
    proposal, _ = proposed("image-classification", CLOTHES, measured(), "attacks")
    proposal = replace(proposal, schedule=replace(proposal.schedule, epochs=8, teacher_epochs=8, train_samples=1_280))
    parts = {part.name: part for part in estimated(proposal, TRIAL, Sizes(1_280, 6_000, 10_000), measured()).parts}
    assert parts["teacher"].likely == pytest.approx(8 * (10 * 0.3 + 1.0))
    assert parts["teacher"].high == pytest.approx(8 * (10 * 0.4 + 1.0))
    assert parts["distill"].likely == pytest.approx(8 * (10 * 0.15 + 0.5))
    assert parts["qat, two targets"].likely == pytest.approx(2 * 1.5 * 2 * (10 * 0.15 + 0.5))
    assert parts["export and bench"].likely == 2 * 5.0 + 13.0


def test_where_the_first_does_not_fit_the_next_is_tried_and_said(tmp_path: Path, shapes: Path, quick_trial: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "facts_of", lambda named, data: replace(CLOTHES, noise=None))
    monkeypatch.setattr(advice, "_noise", lambda folder, data, say: Noise(None, "not asked"))
    monkeypatch.setattr(advice, "evidence", measured)
    dear = replace(TRIAL, student=replace(TRIAL.student, steps=(50.0, 60.0, 70.0)))
    monkeypatch.setattr(advice, "run_trial", lambda config, data, threads: dear if config.sections["distill"].objective.name == "at" else TRIAL)
    result = advice.advise(tmp_path, data=str(shapes), minutes=60)
    assert result.proposal.objective == "trades"
    (told,) = [choice for choice in result.choices if choice.what.endswith(" instead")]
    assert told.because.startswith("at takes at least ")
    message, at, do = problem_of(tmp_path, data=str(shapes), minutes=0.2)
    assert message.startswith("0.2 minutes are too few on this machine: at takes at least ")
    assert "trades takes at least" in message
    assert at == "--minutes"
    assert do is not None
    assert do.startswith("give more time")


@pytest.mark.parametrize("minutes", [0, -3, float("nan"), float("inf")])
def test_no_time_is_refused_before_anything_is_looked_at(minutes: float, tmp_path: Path, quick_trial: list[str]) -> None:
    message, at, do = problem_of(tmp_path / "nowhere", minutes=minutes)
    assert message == f"{minutes:g} minutes are no time for anything"
    assert at == "--minutes"
    assert do == "give a number above 0, or leave it out: the advice then says what it takes"
    assert quick_trial == []


def test_an_unknown_goal_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    assert problem_of(tmp_path, goal="robust") == ("there is no goal 'robust'", "--goal", "known: attacks, corruptions, clean")


def test_nothing_is_changed_unless_it_is_asked_to_write(tmp_path: Path, shapes: Path, quick_trial: list[str]) -> None:
    project = tmp_path / "project"
    project.mkdir()
    result = advice.advise(project, data=str(shapes))
    assert list(project.iterdir()) == []
    assert result.written is None
    written = advice.advise(project, data=str(shapes), write=True)
    assert written.written == project / "kdpipe.toml"
    assert (project / "kdpipe.toml").read_text() == written.toml
    assert f'data = "{shapes}"' in written.toml
    assert len(quick_trial) == 2
    message, at, do = problem_of(project, data=str(shapes), write=True)
    assert (message, at) == ("kdpipe.toml exists already; it is not overwritten", str(project / "kdpipe.toml"))
    assert do == "edit it, or remove it first"
    assert len(quick_trial) == 2


def test_a_projects_own_data_are_looked_at_with_the_labels_that_it_made_wrong(tmp_path: Path, shapes: Path, quick_trial: list[str]) -> None:
    (tmp_path / "kdpipe.toml").write_text('[task]\ndata = "shapes.npz"\n[task.label_noise]\nrate = 0.3\n')
    result = advice.advise(tmp_path)
    assert result.facts.noise is not None
    assert result.facts.noise.percent == pytest.approx(30, abs=2)
    assert "wrong-labels" in [choice.rule for choice in result.choices]


def test_the_trial_is_of_real_steps_and_leaves_nothing(tmp_path: Path, shapes: Path) -> None:
    text = (
        '[project]\nthreads = 1\n[task]\ndata = "shapes.npz"\n[teacher]\nnetwork = "cnn-small"\nobjective = "trades"\nbatch_size = 16\n'
        '[teacher.attack]\nsteps = 1\n[distill]\nstudent = "cnn-small"\nobjective = "rslad"\nbatch_size = 16\n[distill.attack]\nsteps = 1\n'
    )
    config = assemble(tmp_path, parse_toml(text, "kdpipe.toml"), load_stages(), ())
    data = config.task.load(tmp_path, 0)
    before, threads = sorted(path.name for path in tmp_path.iterdir()), torch.get_num_threads()
    trial = run_trial(config, data, 1)
    assert len(trial.teacher.steps) >= 4
    assert len(trial.student.steps) >= 4
    assert all(0 < step < trial.seconds for step in (*trial.teacher.steps, *trial.student.steps))
    assert trial.student.batch_size == 16
    assert 0 < trial.share <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert torch.get_num_threads() == threads


def test_the_command_prints_the_advice_as_json_and_refuses_no_time_with_2(
    tmp_path: Path, shapes: Path, quick_trial: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        return cli.told(lambda: cli.app(args=["advise", str(tmp_path), *arguments], prog_name="kdpipe", standalone_mode=False), as_json=True, debug=False)

    assert run("--data", str(shapes), "--minutes", "100", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cost"]["seconds"]["low"] <= told["cost"]["seconds"]["likely"] <= told["cost"]["seconds"]["high"] <= 6000
    assert told["cost"]["not_included"]
    assert all(set(choice) == {"rule", "what", "because", "evidence"} for choice in told["choices"])
    assert run("--minutes", "0", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["problems"][0]["at"] == "--minutes"


def test_the_command_prints_tables_and_what_is_not_included(tmp_path: Path, shapes: Path, quick_trial: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(args=["advise", str(tmp_path), "--data", str(shapes)], prog_name="kdpipe", standalone_mode=False)
    told = capsys.readouterr().out
    assert "the whole build" in told
    assert "not included: loading and checking the data" in told
    assert "--write writes it" in told
