"""What one broken rule says of a file."""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, Field

from kdpipe.targets.lint.rules import RULES
from kdpipe.targets.profile import Profile

Severity = Literal["error", "warning"]


class LintFinding(BaseModel, extra="forbid", frozen=True):
    """One thing about the file that its target does not take, or takes slowly or less exactly."""

    node: str = Field(description="the node's name, or 'file'")
    rule: str = Field(description="short name of the rule, e.g. 'zero-point'")
    reason: str
    remedy: str
    severity: Severity = Field("warning", description="error: the target refuses the file or computes something else; warning: it runs, not at its best")

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}: {self.reason}; {self.remedy}"


Findings = Iterator[LintFinding]


def found(rule: str, profile: Profile, node: str, reason: str, remedy: str) -> LintFinding:
    """The finding, with the severity that the rule has on the profile's device class."""
    severity: Severity = "error" if profile.device_class in RULES[rule].error_on else "warning"
    return LintFinding(node=node, rule=rule, reason=reason, remedy=remedy, severity=severity)
