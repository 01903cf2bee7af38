"""One evaluation of `kdpipe eval`: what it says once it is done, and what it goes by while it runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from kdpipe.pipeline.evaluation_basis import Basis
from kdpipe.robustness.crafting import Work
from kdpipe.robustness.evaluation import Questions
from kdpipe.robustness.scorecard import Scorecard
from kdpipe.stages.score import EvaluateConfig

if TYPE_CHECKING:
    from kdpipe.stages.stage import Progress


class Gap(BaseModel, extra="forbid", frozen=True):
    """What was not measured, and why."""

    what: str
    reason: str


class Evaluation(BaseModel, extra="forbid", frozen=True):
    """One model, judged: `kdpipe eval --json`."""

    subject: str
    kind: Literal["bundle", "network", "file"]
    sha256: str = Field(description="of the model file, or of the network's weights")
    data: str = Field(description="name of the data set; its test split is judged")
    data_digest: str
    n: int = Field(description="samples of the split")
    settings: EvaluateConfig
    seed: int
    threads: int
    gradients: str = Field(description="whose gradients the attacks followed, and how that was checked")
    scorecards: tuple[Scorecard, ...] = Field(description="one for each runtime")
    not_measured: tuple[Gap, ...]

    @property
    def doubtful(self) -> bool:
        """Whether a masking check failed: the robust accuracy beside it is then an upper bound and no more."""
        return any(check.passed is False for card in self.scorecards for check in card.masking)


@dataclass(frozen=True)
class Judging:
    """One evaluation as it runs. `subject`: the folder or file that is judged."""

    subject: Path
    basis: Basis
    questions: Questions
    work: Work
    progress: "Progress"

    @property
    def config(self) -> EvaluateConfig:
        """The settings it is judged by."""
        return self.basis.config
