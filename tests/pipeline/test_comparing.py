import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline.bundle import write_bundle
from kdpipe.pipeline.cli import app
from kdpipe.pipeline.comparing import Comparison, compare
from kdpipe.pipeline.variant_bundle import write_variants
from kdpipe.robustness.scorecard import Figure
from kdpipe.targets.profile import load_profile

Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def written() -> dict[str, Path]:
    """The bundles that were written, by what they hold."""
    return {}


@pytest.fixture
def bundle(build_folder: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, written: dict[str, Path]) -> Bundle:
    """`bundle("a", clean=96.9, robust=72.8, …)`: the bundle of a build whose int8 file scores so; with `whole` its project."""

    def make(name: str, clean: float = 96.9, robust: float = 72.8, *, target: str = "cpu", whole: bool = False, **changed: Any) -> Path:
        key = repr((clean, robust, target, whole, changed))
        if key not in written:
            written[key] = tmp_path_factory.mktemp("bundles")
            folder = replace(build_folder, root=written[key] / "build", **changed)
            folder.models = {**folder.models, "int8": replace(folder.models["int8"], clean=clean, robust=robust)}
            build = folder.write()
            for each in folder.targets if whole else (target,):
                write_bundle(build, each, (), written[key] / "dist" / "digits" / each)
        project = tmp_path / name
        shutil.copytree(written[key] / "dist", project / "dist")
        (project / "kdpipe.toml").write_text('[project]\nname = "digits"\n[task]\ndata = "digits"\n')
        return project if whole else project / "dist" / "digits" / target

    return make


@pytest.fixture
def variants(build_folder: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, written: dict[str, Path]) -> Bundle:
    """`variants("a")`: a project with one bundle, of both variants of the target `cpu`."""

    def make(name: str) -> Path:
        if "variants" not in written:
            written["variants"] = tmp_path_factory.mktemp("variants")
            members = {"avx2": "cpu-avx2", "vnni": "cpu-vnni"}
            build = replace(build_folder, root=written["variants"] / "build", targets=tuple(members.values()), measured=tuple(members.values())).write()
            profiles = {target: load_profile("cpu", at="test", variant=variant).model_dump(mode="json") for variant, target in members.items()}
            config = {**build.config, "targets": {target: {"profile": profile, "bundle": "cpu"} for target, profile in profiles.items()}}
            write_variants(replace(build, config=config), "cpu", members, (), written["variants"] / "dist" / "digits" / "cpu")
        project = tmp_path / name
        shutil.copytree(written["variants"] / "dist", project / "dist")
        (project / "kdpipe.toml").write_text('[project]\nname = "digits"\n[task]\ndata = "digits"\n')
        return project

    return make


def row(comparison: Comparison, figure: str, runtime: str = "onnxruntime") -> Any:
    return next(it for it in comparison.rows if it.figure == figure and it.runtime in (runtime, ""))


def test_a_bundle_is_no_worse_than_itself(bundle: Bundle) -> None:
    (comparison,) = compare(bundle("a"), bundle("b"))
    assert comparison.exit_code == 0
    judged = [it for it in comparison.rows if it.judged]
    assert {it.figure for it in judged} == {"clean", "robust (worst attack)", "fgsm", "pgd-20", "corrupted (mean)", "Brier score × 100"}
    assert {it.runtime for it in judged} == {"onnxruntime", "openvino"}
    assert all((it.difference.value, it.state) == (0, "no difference shown") for it in judged)
    assert {it.holm_p for it in judged} == {1.0}


def test_a_loss_beyond_chance_is_a_regression_and_the_other_way_round_an_improvement(bundle: Bundle) -> None:
    good, bad = bundle("a"), bundle("b", robust=60.0)
    (comparison,) = compare(good, bad)
    found = row(comparison, "robust (worst attack)")
    assert comparison.exit_code == 3
    assert {it.figure for it in comparison.regressions} == {"robust (worst attack)", "pgd-20", "fgsm"}
    assert found.difference.value == pytest.approx(60.0 - 72.8, abs=0.2)
    assert found.difference.low < found.difference.value < found.difference.high < 0
    assert found.holm_p < 1e-6
    (back,) = compare(bad, good)
    assert back.exit_code == 0
    assert row(back, "robust (worst attack)").state == "improved"


def test_a_loss_within_the_margin_is_none(bundle: Bundle) -> None:
    a, b = bundle("a"), bundle("b", robust=66.0)
    assert compare(a, b)[0].exit_code == 3
    assert compare(a, b, margin=10.0)[0].exit_code == 0


def test_a_small_difference_says_how_many_samples_would_show_it(bundle: Bundle) -> None:
    (comparison,) = compare(bundle("a", clean=96.9), bundle("b", clean=96.7))
    found = row(comparison, "clean")
    assert found.state == "no difference shown"
    assert found.reason.startswith("to show a difference this small takes about ")
    assert "clean" not in {it.figure for it in comparison.regressions}


def test_calibration_is_compared_on_proper_scores_and_ece_is_shown_alone(bundle: Bundle) -> None:
    (comparison,) = compare(bundle("a"), bundle("b", clean=80.0))
    brier, nll, ece = (row(comparison, name) for name in ("Brier score × 100", "NLL", "ECE"))
    assert brier.difference.value == pytest.approx(16.9 / 100 * 100 * 2 * (0.81 - 0.01), abs=0.5)
    assert (brier.state, brier.judged) == ("regressed", True)  # more is worse
    assert nll.difference.low > 0
    assert (nll.judged, ece.judged, ece.difference) == (False, False, None)
    assert ece.reason == "its bias depends on the model, so a difference has no interval"


def test_projects_are_compared_target_by_target(bundle: Bundle) -> None:
    comparisons = compare(bundle("a", whole=True), bundle("b", whole=True))
    assert [(it.a.target, it.b.target) for it in comparisons] == [("arm", "arm"), ("cpu", "cpu")]
    assert [it.a.target for it in compare(bundle("c", whole=True), bundle("d"))] == ["cpu"]


@pytest.mark.parametrize(
    ("target", "compared"),
    [(None, ["cpu-vnni", "cpu-avx2"]), ("cpu", ["cpu-vnni", "cpu-avx2"]), ("cpu-vnni", ["cpu-vnni"])],
    ids=["all", "the target", "one variant"],
)
def test_a_target_with_variants_is_compared_variant_by_variant(variants: Bundle, target: str | None, compared: list[str]) -> None:
    a, b = variants("a") / "dist" / "digits" / "cpu", variants("b")
    assert [(it.a.target, it.b.target) for it in compare(a, b, target=target)] == [(name, name) for name in compared]


def test_a_variant_that_has_a_bundle_of_its_own_too_is_not_chosen_for_the_user(variants: Bundle) -> None:
    project = variants("a")
    member = project / "dist" / "digits" / "cpu" / "vnni"
    alone = shutil.copytree(member, project / "dist" / "digits" / "cpu-vnni")
    with pytest.raises(ConfigError) as caught:
        compare(project, variants("b"))
    problem = caught.value.problems[0]
    assert problem.message == f"two bundles of target 'cpu-vnni': {member} and {alone}"
    assert (problem.at, problem.do) == (str(alone), "name one of them")


def test_two_single_bundles_are_compared_across_targets_on_what_both_ran_in(bundle: Bundle) -> None:
    (comparison,) = compare(bundle("a"), bundle("b", target="arm"))
    assert {it.runtime for it in comparison.rows if it.judged} == {"onnxruntime"}
    latency = next(it for it in comparison.rows if it.figure == "latency")
    assert (latency.state, latency.reason) == ("not comparable", "B: not measured: no device")


def test_latencies_of_one_machine_are_shown_and_not_judged(bundle: Bundle) -> None:
    (comparison,) = compare(bundle("a"), bundle("b"))
    latencies = [it for it in comparison.rows if it.figure.startswith("latency p50")]
    assert {it.figure for it in latencies} == {"latency p50, batch 1, 1 thread", "latency p50, batch 1, 2 threads"}
    assert {(it.state, it.judged) for it in latencies} == {("shown only", False)}


def test_other_attacks_are_named_and_not_compared(bundle: Bundle) -> None:
    b = bundle("b")
    edited(b, "scorecard.json", lambda text: text.replace('"epsilon": 0.1', '"epsilon": 0.2'))
    (comparison,) = compare(bundle("a"), b)
    found = row(comparison, "robust (worst attack)")
    assert (found.state, found.judged, found.difference) == ("not comparable", False, None)
    assert found.reason == "A met fgsm (linf, ε = 0.1), pgd-20 (linf, ε = 0.1); B met fgsm (linf, ε = 0.2), pgd-20 (linf, ε = 0.2)"
    assert row(comparison, "pgd-20").state == "not comparable"


def edited(folder: Path, name: str, change: Callable[[str], str]) -> None:
    """Change a file of a bundle and its digest."""
    (folder / name).write_text(change((folder / name).read_text()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_of_nested_draws_the_common_samples_are_compared(bundle: Bundle) -> None:
    b = bundle("b")
    with np.load(b / "answers.npz") as archive:
        arrays = dict(archive)
    fewer = {name: array[::2] if "/robust" in name or "/attack/" in name or name == "indices/attack" else array for name, array in arrays.items()}
    del fewer["indices/black-box"]
    np.savez(b / "answers.npz", **fewer)  # type: ignore[arg-type]
    edited(b, "scorecard.json", lambda text: text.replace('"n": 540', '"n": 270'))
    manifest = json.loads((b / "manifest.json").read_text())
    manifest["files"]["answers.npz"]["sha256"] = sha256_of(b / "answers.npz")
    (b / "manifest.json").write_text(json.dumps(manifest))
    found = row(compare(bundle("a"), b)[0], "robust (worst attack)")
    assert (found.difference.value, found.difference.n) == (0, 270)
    assert found.reason == "on the 270 samples that both were asked"


def test_older_answers_are_compared_but_for_calibration(bundle: Bundle) -> None:
    (comparison,) = compare(bundle("a", graded=False), bundle("b"))  # no digest of the samples: that of the data stands for it
    found = row(comparison, "Brier score × 100")
    assert (found.state, found.judged) == ("not comparable", False)
    assert "the score step must run again" in found.reason
    assert row(comparison, "clean").judged


def _forget_answers(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["answers.npz"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "message", "do"),
    [
        (lambda b: (b / "manifest.json").unlink(), "neither a bundle nor a project", "name dist/PROJECT/TARGET"),
        (
            _forget_answers,
            "the bundle holds no per-sample answers",
            "kdpipe report --project PROJECT",
        ),
    ],
    ids=["no bundle", "older bundle"],
)
def test_what_is_no_bundle_or_too_old_says_what_to_do(bundle: Bundle, spoil: Callable[[Path], Any], message: str, do: str) -> None:
    b = bundle("b")
    spoil(b)
    with pytest.raises(ConfigError) as caught:
        compare(bundle("a"), b)
    problem = caught.value.problems[0]
    assert message in problem.message
    assert str(b) in (problem.at or "")
    assert do in (problem.do or "")


def test_other_samples_are_refused(bundle: Bundle) -> None:
    a, b = bundle("a"), bundle("b", digest=8)
    with pytest.raises(ConfigError) as caught:
        compare(a, b)
    problem = caught.value.problems[0]
    assert problem.message == "the two were judged on different samples: sha256 070707070707… in A, sha256 080808080808… in B"
    assert problem.at == f"{a} and {b}"
    assert problem.do == "build both from the same data with the same [project] seed; other figures cannot be paired"


def test_a_damaged_bundle_is_refused(bundle: Bundle) -> None:
    b = bundle("b")
    with (b / "answers.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationError) as caught:
        compare(bundle("a"), b)
    assert caught.value.problems[0].message == "the file is not the one that was built: its sha256 differs"


def test_a_project_without_bundles_and_targets_that_do_not_meet_are_told(bundle: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "kdpipe.toml").write_text("[task]\ndata = 'digits'\n")
    with pytest.raises(ConfigError) as caught:
        compare(bundle("a"), empty)
    assert (caught.value.problems[0].message, caught.value.problems[0].do) == ("the project has no bundle yet", f"kdpipe build --project {empty}")
    with pytest.raises(ConfigError) as caught:
        compare(bundle("b", whole=True), bundle("c"), target="arm")
    assert caught.value.problems[0].message == "the target 'arm' is not on both sides: A has arm, cpu; B has cpu"


def test_a_margin_has_a_range(bundle: Bundle) -> None:
    with pytest.raises(ConfigError) as caught:
        compare("a", "b", margin=-1)
    problem = caught.value.problems[0]
    assert (problem.message, problem.at, problem.do) == ("a margin of -1 points is not in [0, 100]", "--margin", "give the points that may be lost: 0.5")


def _run(*arguments: str) -> int:
    code = app(args=list(arguments), prog_name="kdpipe", standalone_mode=False)
    return code if isinstance(code, int) else 0


def test_the_command_prints_a_table_or_json_and_exits_with_3_on_a_regression(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = bundle("a"), bundle("b", clean=90.0)
    assert _run("compare", str(a), str(b)) == 3
    shown = capsys.readouterr().out
    assert "regressed" in shown
    assert "regression: clean in onnxruntime" in shown
    assert _run("compare", str(a), str(b), "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 3
    clean = next(it for it in told["comparisons"][0]["rows"] if it["figure"] == "clean")
    assert clean["state"] == "regressed"
    assert clean["difference"]["high"] < 0
    assert Figure(**clean["a"]).value == pytest.approx(96.9, abs=0.1)


def test_the_samples_that_a_claim_needs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("samples", "--half-width", "1", "--rate", "0.85", "--difference", "1", "--discordant", "0.03") == 0
    assert capsys.readouterr().out.splitlines() == [
        "±1 points at 85 %: 4,898 samples",
        "1 points between two models, found in 80 of 100 cases: 2,353 samples where 3 % are right in one model alone, judged by both models",
        "the same on two separate sets at 85 %: 20,015 samples each",
    ]
    assert _run("samples", "--half-width", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"half_width": 9600}
    with pytest.raises(ConfigError) as caught:
        _run("samples")
    problem = caught.value.problems[0]
    assert (problem.message, problem.at) == ("nothing was asked", "kdpipe samples")
    assert problem.do == "give --half-width 1.0, or --difference 1.0, in percentage points"
