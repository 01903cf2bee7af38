"""How a build goes. For Python: `from kdpipe.pipeline import build, plan`; nothing heavy is imported before they are used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe.pipeline.building import build, plan

__all__ = ["build", "plan"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kdpipe.pipeline import building

        return getattr(building, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
