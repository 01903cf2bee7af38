"""What pruning took away, as its stage wrote it down."""

from kdpipe.pipeline.results import read_model
from kdpipe.pipeline.steps import BuildResult
from kdpipe.stages.prune import REPORT_FILE, PruningReport


def pruning(build: BuildResult) -> PruningReport | None:
    """The figures of the build's prune step; None where nothing was pruned. VerificationError when they cannot be read."""
    step = build.results.get("prune")
    return None if step is None else read_model(step.folder / REPORT_FILE, PruningReport)
