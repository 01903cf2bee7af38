"""A project whose stages are real but tiny: each writes a file that follows from its inputs, its configuration and the data.

`python tiny_project.py PROJECT` builds it, in a process of its own that a test can kill. Each stage counts its runs in
PROJECT/runs/, and waits in the stage named by TINY_STAGE until PROJECT/go is there, after it has left a mark in its work folder.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, Field

from kdpipe.pipeline.config import Config, read_config
from kdpipe.pipeline.planning import Plan, make_plan
from kdpipe.pipeline.progress import PlainProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.user_code import importable
from kdpipe.stages.objectives.configured import ConfiguredObjective, ObjectiveSection
from kdpipe.stages.stage import Context, Inputs

KDPIPE_TOML = """\
[project]
name = "tiny"
[task]
data = "digits"
[teacher]
epochs = 2
[distill]
objective = "rslad"
epochs = 2
[distill.attack]
epsilon = 0.1
[prune]
share = 0.5
[targets.cpu]
"""


class TeacherConfig(BaseModel, extra="forbid", frozen=True):
    epochs: int = Field(3, ge=1, le=100, description="passes over the data")
    network: str = "small"
    weights: str | None = None

    def content(self, project: Path) -> dict[str, str]:
        return {} if self.weights is None else {"weights": hashlib.sha256((project / self.weights).read_bytes()).hexdigest()}


class DistillConfig(ObjectiveSection, extra="forbid", frozen=True):
    default_objective = "rslad"
    epochs: int = Field(3, ge=1, description="passes over the data")


class PruneConfig(BaseModel, extra="forbid", frozen=True):
    objective: ConfiguredObjective | None = None
    share: float = Field(gt=0, lt=1, description="share of the channels that goes")


class QatConfig(BaseModel, extra="forbid", frozen=True):
    objective: ConfiguredObjective | None = None
    epochs: int = 1


class ExportConfig(BaseModel, extra="forbid", frozen=True):
    tolerance: float = Field(0.01, gt=0)


class EvaluateConfig(BaseModel, extra="forbid", frozen=True):
    subject: str | None = None
    norm: str = "linf"
    epsilon: float = Field(0.5, gt=0, le=1)
    samples: int = Field(100, ge=1)


class BenchConfig(BaseModel, extra="forbid", frozen=True):
    device: str | None = None
    seconds: float = Field(1.0, gt=0)


def run(inputs: Inputs, config: BaseModel, context: Context) -> Path:
    """A file that is a function of all that the stage was given; a kill in the middle leaves `half.txt` behind."""
    stage = type(config).__name__.removesuffix("Config").lower()
    runs = context.project / "runs"
    runs.mkdir(exist_ok=True)
    with (runs / stage).open("a") as file:
        file.write(f"{os.getpid()}\n")
    half = context.folder / "half.txt"
    resumed = half.exists()
    half.write_text("half")
    if os.environ.get("TINY_STAGE") == stage:
        print(f"inside {stage}", flush=True)
        while not (context.project / "go").exists():
            time.sleep(0.05)
    half.unlink()
    context.progress.say(f"{stage}: resumed" if resumed else f"{stage}: from the start")
    told: dict[str, Any] = {name: hashlib.sha256((folder / "weights.txt").read_bytes()).hexdigest() for name, folder in sorted(inputs.artifacts.items())}
    told |= {
        "config": config.model_dump(mode="json"),
        "data": inputs.data.digest,
        "seed": context.seed,
        "profile": inputs.profile.name if inputs.profile else None,
    }
    (context.folder / "weights.txt").write_text(json.dumps(told, sort_keys=True) * 50)
    (context.folder / "deep").mkdir(exist_ok=True)
    (context.folder / "deep" / "history.json").write_text("[]")
    return context.folder


MODELS = {
    "teacher": TeacherConfig,
    "distill": DistillConfig,
    "prune": PruneConfig,
    "qat": QatConfig,
    "export": ExportConfig,
    "score": EvaluateConfig,
    "score-export": EvaluateConfig,
    "bench": BenchConfig,
}
STAGES: dict[str, Any] = {name: SimpleNamespace(VERSION=1, TOOLS=("numpy",), run=run, **{model.__name__: model}) for name, model in MODELS.items()}


def config_of(project: Path, **arguments: Any) -> Config:
    return read_config(project, STAGES, **arguments)


def plan_of(project: Path, *, until: str | None = None, **arguments: Any) -> Plan:
    return make_plan(config_of(project, **arguments), STAGES, Store(project), until=until)


def main() -> None:
    project = Path(sys.argv[1])
    with importable(project):
        results = run_plan(plan_of(project, until="distill"), STAGES, Store(project), PlainProgress())
    print(json.dumps({name: result.state for name, result in results.items()}))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background of a shell inherit that it is ignored
    main()
