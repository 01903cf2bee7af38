"""A teacher's logits on the training split, kept on the disk: a second training that asks the same teacher about the same samples finds them there.

A table is found by a digest of what it follows from, and believed only if the teacher still gives the table's first rows to the bit: a torch, a processor or a
teacher's code that rounds otherwise is noticed. So a training comes to the same bits with the cache and without.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, Field, JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdpipe.foundation.files import canonical_json, told_disk_errors, write_bytes

FOLDER = Path(".kdpipe") / "targets"
"""below the project's folder"""

_MEGABYTE = 1_000_000
_log = logging.getLogger(__name__)


class TargetCache(BaseModel, extra="forbid", frozen=True):
    """`[distill.cache]`: that the teachers' logits on clean training samples are kept on the disk, for all trainings of the project."""

    most_mb: int = Field(1024, ge=1, description="size of all tables of the project together, in MB; those unused longest are removed first")


@dataclass(frozen=True)
class Table:
    """A place on the disk for one table; `identity`: JSON of all that its bits follow from."""

    folder: Path
    identity: Mapping[str, JsonValue]
    most_mb: int

    @property
    def path(self) -> Path:
        """The file, there or not."""
        return self.folder / f"{hashlib.sha256(canonical_json(dict(self.identity))).hexdigest()}.safetensors"

    def read(self, shape: tuple[int, int], say: Callable[[str], None]) -> Tensor | None:
        """The table, `shape` = (samples, classes), or None where there is none that is whole; of a damaged one is told."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                logits: Tensor = file.get_tensor("logits")
                digest = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError) as error:
            self._tell(f"it cannot be read ({type(error).__name__})", say)
            return None
        if tuple(logits.shape) != shape or digest != _sha256(logits):
            self._tell("its content is not what was written", say)
            return None
        with told_disk_errors(self.path):
            self.path.touch()  # used: removed last
        return logits

    def write(self, logits: Tensor, say: Callable[[str], None]) -> None:
        """Keep the table, if it fits, and tell of its size; older ones make room."""
        content = save({"logits": logits.contiguous()}, {"sha256": _sha256(logits)})
        if len(content) > self.most_mb * _MEGABYTE:
            say(f"the teacher's logits ({len(content) / _MEGABYTE:.1f} MB) are more than [distill.cache] may hold (most_mb = {self.most_mb}): not kept")
            return
        with told_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, content)
        tables = self._tables()
        total = sum(size for _, size in tables)
        for path, size in tables:
            if total > self.most_mb * _MEGABYTE and path != self.path:
                path.unlink(missing_ok=True)
                total -= size
        say(f"the teacher's logits are kept: {len(content) / _MEGABYTE:.1f} MB, {total / _MEGABYTE:.1f} MB with those of other trainings, in {FOLDER}")

    def _tables(self) -> list[tuple[Path, int]]:
        """All tables of the folder and their sizes, that unused longest first; what another process removes meanwhile is not there."""
        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]

    def _tell(self, problem: str, say: Callable[[str], None]) -> None:
        _log.info("damaged table %s: %s", self.path, problem)
        say(f"kept logits of the teacher are not used: {problem}; they are computed anew")


def identity_of(teacher: nn.Module, specification: JsonValue, data_digest: str, labels: tuple[str, ...]) -> dict[str, JsonValue]:
    """What a table's bits follow from, as far as it can be told: weights, network, data, torch, its threads and the processor's vectors."""
    digest = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "weights": digest.hexdigest(),
        "network": specification,
        "data": data_digest,
        "classes": list(labels),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def _sha256(logits: Tensor) -> str:
    return hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()
