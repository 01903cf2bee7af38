"""How a build goes. For Python: `from kdpipe.pipeline import build, compare, evaluate, plan`; nothing heavy is imported before they are used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe.pipeline.building import build, plan
    from kdpipe.pipeline.comparing import compare
    from kdpipe.pipeline.evaluating import evaluate

__all__ = ["build", "compare", "evaluate", "plan"]

_HOMES = {"build": "building", "compare": "comparing", "evaluate": "evaluating", "plan": "building"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"kdpipe.pipeline.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
