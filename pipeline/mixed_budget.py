"""What a search for layers that stay in float goes by: the target's budgets and the runtimes that decide, which become part of `[qat]`."""

from typing import Any

from pydantic import BaseModel

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.target_sections import Target
from kdpipe.stages.qat import QatConfig
from kdpipe.stages.score import EvaluateConfig
from kdpipe.stages.search_attack import SearchAttack
from kdpipe.targets.runtimes.runtime import runtime_version


def with_limits(section: BaseModel, target: Target | None, evaluate: BaseModel) -> BaseModel:
    """`[qat]` of the target as its step takes it: with `keep_float = "auto"` the limits, the attack and the runtimes' versions, else as it is.

    `evaluate`: `[evaluate]`, with the ball of the attack that it judges with. Raises ConfigError where there is no budget to keep to, or no attack for it.
    """
    if not isinstance(section, QatConfig) or section.keep_float != "auto" or target is None:
        return section
    assert isinstance(evaluate, EvaluateConfig), "the stage's own section"
    at = f"[qat] keep_float, target {target.name!r}"
    if section.keep_float_robust is not None and not evaluate.attacks:
        raise ConfigError(
            f"keep_float_robust = {section.keep_float_robust:g} has no attack: [evaluate] attacks is empty",
            at=at,
            do="name an attack in [evaluate] attacks, e.g. ['pgd-20'], or remove keep_float_robust",
        )
    drop = target.budgets.clean_drop if section.keep_float_drop is None else section.keep_float_drop
    robust = target.budgets.robust_accuracy if section.keep_float_robust is None else section.keep_float_robust
    if not evaluate.attacks:
        robust = None
    if drop is None and robust is None:
        raise ConfigError(
            "keep_float = 'auto' has no budget to keep to",
            at=at,
            do="set clean_drop (points below the teacher) or, where [evaluate] has attacks, robust_accuracy (per cent) in [budgets], "
            "or keep_float_drop or keep_float_robust in [qat]",
        )
    runtimes = tuple(f"{need.name} {runtime_version(need.name) or 'missing'}" for need in target.profile.runtimes)
    filled: dict[str, Any] = {"keep_float_drop": drop, "measured_in": runtimes}
    if robust is not None:
        filled |= {"keep_float_robust": robust, "search_attack": SearchAttack(norm=evaluate.norm, epsilon=evaluate.strength)}
    return section.model_copy(update=filled)
