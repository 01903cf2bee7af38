"""The stages as the pipeline sees them: modules with a version, their tools, a configuration model and `run`."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import BaseModel

from kdpipe.stages.stage import Context, Inputs

MODULES = MappingProxyType(
    {
        "teacher": "kdpipe.stages.teacher",
        "distill": "kdpipe.stages.distill",
        "prune": "kdpipe.stages.prune",
        "qat": "kdpipe.stages.qat",
        "export": "kdpipe.stages.export",
        "score": "kdpipe.stages.score",
        "score-export": "kdpipe.stages.score_export",
        "bench": "kdpipe.stages.bench",
    }
)

_CONFIG_NAMES = {"score": "EvaluateConfig", "score-export": "EvaluateConfig"}


class StageModule(Protocol):
    """What `stages/<stage>.py` has. `VERSION` rises when the output changes for equal input; `TOOLS`: distributions that can change it.

    It may also have `check(sections, inputs)`: called while the build is planned, with all sections and inputs without artifacts; it raises
    ConfigError for what can be told wrong before the stages that come first have run.
    """

    VERSION: int
    TOOLS: tuple[str, ...]

    def run(self, inputs: Inputs, config: Any, context: Context) -> Path:
        """Leave the artifact in `context.folder` and return it."""
        ...


def load_stages() -> Mapping[str, StageModule]:
    """All stages by name, imported; this is where torch and the runtimes load."""
    return {name: importlib.import_module(module) for name, module in MODULES.items()}


def config_model(module: StageModule, stage: str) -> type[BaseModel]:
    """The stage's configuration model: `TeacherConfig` of `teacher`."""
    model: type[BaseModel] = getattr(module, _CONFIG_NAMES.get(stage, f"{stage.capitalize()}Config"))
    return model
