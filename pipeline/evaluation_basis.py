"""What an evaluation rests on: which data, which settings, which seed. The bundle's own, those of a project, or what the caller names.

A bundle says how it was judged when it was built: asked for nothing else, `kdpipe eval` asks the same questions and gets the same answers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, JsonValue, ValidationError

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.pipeline.config import DEFAULT_TASK, FILE, read_config, task_model
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.planning import judged_as_trained, physical_cores
from kdpipe.pipeline.stages import load_stages
from kdpipe.robustness.corruption import SETS
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages.score import EvaluateConfig

if TYPE_CHECKING:
    from kdpipe.tasks.data.splits import DataSplits

SCORECARD_FILE = "scorecard.json"


@dataclass(frozen=True)
class Asked:
    """What the caller names; None: as the bundle or the project has it. `n`: samples that are attacked, and that are corrupted."""

    project: Path | None = None
    data: str | None = None
    attacks: Sequence[str] | None = None
    n: int | None = None
    norm: str | None = None
    epsilon: float | None = None
    corruptions: Sequence[str] | None = None
    decision_queries: int | None = None
    seed: int | None = None


class Bundle(BaseModel, extra="ignore", frozen=True):
    """What an evaluation needs of a bundle's manifest. `steps`: name to fingerprint in the project's store."""

    project: str
    target: str
    data: str
    steps: dict[str, str]
    machine: dict[str, JsonValue] = Field(default_factory=dict)
    configuration: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The resolved configuration of its build."""
        values: dict[str, Any] = self.configuration["values"]
        return values

    @property
    def runtimes(self) -> dict[str, str]:
        """The target's runtimes: name to the range of versions."""
        needs = self.values["targets"][self.target]["profile"]["runtimes"]
        return {need["name"]: need.get("versions", "") for need in needs}


@dataclass(frozen=True)
class Basis:
    """All that decides the questions. `project`: None where there is none at hand."""

    project: Path | None
    bundle: Bundle | None
    data: "DataSplits"
    config: EvaluateConfig
    seed: int
    threads: int


def basis_of(subject: Path, asked: Asked) -> Basis:
    """The basis for judging `subject`, its data loaded. Raises ConfigError where there is no data to judge it on, or a setting cannot be used."""
    bundle = read_bundle(subject) if (subject / MANIFEST_FILE).is_file() else None
    project = asked.project or _project_around(subject)
    if asked.project is not None and not (asked.project / FILE).is_file():
        raise ConfigError(f"no {FILE} here", at=asked.project, do="name the folder of a project, or name --data")
    if bundle is not None:
        task, seed, threads, config = _of_bundle(bundle, subject)
    elif project is not None:
        read = read_config(project, load_stages())
        task, seed, threads = read.task, read.seed, read.threads or physical_cores()
        trained = judged_as_trained(read.sections["evaluate"], read.sections["distill"].objective)
        assert isinstance(trained, EvaluateConfig)
        config = trained
    else:
        task, seed, threads, config = None, 0, physical_cores(), EvaluateConfig()
    if asked.data is not None:
        task = task_model(DEFAULT_TASK, at="--data").model_validate({"data": asked.data})
    if task is None:
        raise ConfigError(
            "there is no data to judge it on", at=subject, do="name --data (a built-in name, an .npz, a folder of class folders) or --project (its test split)"
        )
    seed = seed if asked.seed is None else asked.seed
    data = task.load(Path.cwd() if project is None or asked.data is not None else project, seed)
    return Basis(project, bundle, data, _settings(config, asked), seed, threads)


def read_bundle(folder: Path) -> Bundle:
    """The manifest in `folder`; VerificationError where it is not one."""
    path = folder / MANIFEST_FILE
    try:
        bundle = Bundle.model_validate_json(path.read_bytes())
        _ = (bundle.runtimes, bundle.values["task"], bundle.values["evaluate"], bundle.values["project"]["seed"])
    except (OSError, ValidationError, LookupError, TypeError) as error:
        raise VerificationError(f"the manifest cannot be read: {error}", at=path, do="copy the bundle again, or run kdpipe build") from error
    return bundle


def _of_bundle(bundle: Bundle, folder: Path) -> tuple[Any, int, int, EvaluateConfig]:
    kind = bundle.values["task"].get("kind", DEFAULT_TASK)
    model = task_model(kind, at=str(folder / MANIFEST_FILE))
    own = {key: value for key, value in bundle.values["task"].items() if value is not None and (key != "kind" or "kind" in model.model_fields)}
    threads = bundle.machine.get("threads")
    config = EvaluateConfig.model_validate({**bundle.values["evaluate"], **_ball_of(folder)})
    return model.model_validate(own), int(bundle.values["project"]["seed"]), threads if isinstance(threads, int) else physical_cores(), config


def _ball_of(folder: Path) -> dict[str, Any]:
    """The norm and the epsilon of the bundle's own attacks: they may have come from the training's."""
    try:
        cards = json.loads((folder / SCORECARD_FILE).read_bytes())["scorecards"]
        attacks = [attack for card in cards for attack in Scorecard.model_validate(card).attacks]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise VerificationError(f"cannot be read: {error}", at=folder / SCORECARD_FILE, do="copy the bundle again, or run kdpipe build") from error
    return {"norm": attacks[0].norm, "epsilon": attacks[0].epsilon} if attacks else {}


def _project_around(subject: Path) -> Path | None:
    """The nearest folder above that is a project: of `dist/PROJECT/TARGET` and of the store's artifacts."""
    return next((folder for folder in subject.resolve().parents if (folder / FILE).is_file()), None)


def _settings(config: EvaluateConfig, asked: Asked) -> EvaluateConfig:
    named: dict[str, Any] = {
        "attacks": asked.attacks,
        "norm": asked.norm,
        "epsilon": asked.epsilon,
        "attack_samples": asked.n,
        "corruption_samples": asked.n,
        "corruptions": None if asked.corruptions is None else _corruptions(asked.corruptions),
        "decision_queries": asked.decision_queries,
    }
    given = {key: value for key, value in named.items() if value is not None}
    if asked.norm is not None and asked.epsilon is None and asked.norm != config.norm:
        given["epsilon"] = None  # an epsilon means nothing in another norm: that norm's default
    return _validated(config, given)


def _corruptions(names: Sequence[str]) -> str | tuple[str, ...]:
    """As `[evaluate] corruptions` writes them: a set, or a folder of files, stands alone; the folder is where the caller stands, not in the project."""
    if len(names) == 1 and "/" in names[0]:
        return str(Path(names[0]).resolve())
    return names[0] if len(names) == 1 and names[0] in SETS else tuple(names)


def _validated(config: EvaluateConfig, given: dict[str, Any]) -> EvaluateConfig:
    options = {"attack_samples": "--n", "corruption_samples": "--n", "decision_queries": "--decision-queries"}
    try:
        return EvaluateConfig.model_validate({**config.model_dump(), **given})
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0]) if fault["loc"] else "epsilon"
        message = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(
            message if message.startswith(f"{key} = ") else f"{key} = {given.get(key, fault['input'])}: {message}",
            at=options.get(key, f"--{key}"),
            do="kdpipe eval --help; docs/configuration.md#evaluate",
        ) from error
