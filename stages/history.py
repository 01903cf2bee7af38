"""What came of a training, epoch by epoch: `history.json`. It holds no times, so it is the same to the bit however often the training was interrupted."""

from pathlib import Path

from pydantic import BaseModel

from kdpipe.foundation.files import write_json
from kdpipe.stages.training_config import SelectBy
from kdpipe.stages.validation import Validation

HISTORY_FILE = "history.json"


class EpochRecord(BaseModel, extra="forbid", frozen=True):
    """One epoch, counted from 1. `loss`: `total` and the objective's terms before their weights, means over the epoch's samples."""

    epoch: int
    learning_rate: float
    loss: dict[str, float]
    validation: Validation


class History(BaseModel, extra="forbid", frozen=True):
    """What came of one training. It holds no times: it is the same to the bit however often the training was interrupted."""

    label: str
    objective: str
    select_by: SelectBy
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    stopped_early: bool

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights were kept."""
        return self.epochs[self.best_epoch - 1]


def write_history(folder: Path, *histories: History) -> None:
    """`history.json`: `{"trainings": [...]}`, one entry per training of the stage, in order."""
    write_json(folder / HISTORY_FILE, {"trainings": [history.model_dump(mode="json") for history in histories]})
