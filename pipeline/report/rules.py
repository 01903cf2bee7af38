"""What the target's rules say about the int8 file: the findings of the offline checks, as the export stage wrote them down."""

from pydantic import BaseModel

from kdpipe.pipeline.results import TargetResults, read_model
from kdpipe.stages.export import LINT_FILE
from kdpipe.targets.lint import LintFinding


class Rules(BaseModel, extra="forbid", frozen=True):
    """`lint.json`. `profile`: whose rules; no findings: none is broken."""

    profile: str
    findings: tuple[LintFinding, ...]


def rules(tail: TargetResults) -> Rules | None:
    """Those of the target's file; None where none was exported. VerificationError when they cannot be read."""
    return None if tail.export is None else read_model(tail.export / LINT_FILE, Rules)
