"""What a search for layers that stay in float goes by: the target's budget and the runtimes that decide, which become part of `[qat]`."""

from pydantic import BaseModel

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.target_sections import Target
from kdpipe.stages.qat import QatConfig
from kdpipe.targets.runtimes.runtime import runtime_version


def with_limit(section: BaseModel, target: Target | None) -> BaseModel:
    """`[qat]` of the target as its step takes it: with `keep_float = "auto"` the limit and the runtimes' versions, else as it is.

    Raises ConfigError where there is no budget to keep to.
    """
    if not isinstance(section, QatConfig) or section.keep_float != "auto" or target is None:
        return section
    limit = target.budgets.clean_drop if section.keep_float_drop is None else section.keep_float_drop
    if limit is None:
        raise ConfigError(
            "keep_float = 'auto' has no budget to keep to",
            at=f"[qat] keep_float, target {target.name!r}",
            do="set clean_drop in [budgets] (points below the teacher), or keep_float_drop in [qat]",
        )
    runtimes = tuple(f"{need.name} {runtime_version(need.name) or 'missing'}" for need in target.profile.runtimes)
    return section.model_copy(update={"keep_float_drop": limit, "measured_in": runtimes})
