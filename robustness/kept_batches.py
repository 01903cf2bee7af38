"""Adversarial samples on the disk while their attack goes on: whoever is killed takes up the batch, and of an ensemble the member, where it was.

A batch is one safetensors file, whole or not there, with the digest of its own content; what is damaged or was made by another question is made again.
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdpipe.foundation.files import canonical_json, told_disk_errors, write_bytes
from kdpipe.robustness.attacks.method import Part

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptBatches:
    """Batches in `folder`. `identity`: all that determines them and is not asked for by `key`: the model's digest, the file and its runtime."""

    folder: Path
    identity: str = ""

    def of(self, part: str) -> "KeptBatches":
        """Those of one model of several, apart from the others."""
        return replace(self, identity=f"{self.identity}/{part}")

    def key(self, question: Mapping[str, object]) -> str:
        """The name of one attack on one set of samples; `question`: a JSON object."""
        return hashlib.sha256(canonical_json({"identity": self.identity, **question})).hexdigest()[:32]

    def read(self, key: str, begin: int) -> Part | None:
        """What is there of the batch that begins at `begin`, or None; one that is damaged counts as not there."""
        path = self._path(key, begin)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata()
                part = Part(told["name"], file.get_tensor("x_adv"), file.get_tensor("margins"), last=told["last"] == "yes")
                sound = told["digest"] == _digest(part)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            _log.info("unreadable batch %s: %s", path, error)
            return None
        return part if sound else None

    def write(self, key: str, begin: int, part: Part) -> None:
        """Keep the batch as it is now; raises UnavailableError when the disk refuses."""
        with told_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        told = {"name": part.name, "last": "yes" if part.last else "no", "digest": _digest(part)}
        write_bytes(self._path(key, begin), save(_tensors(part), metadata=told))

    def remove(self) -> None:
        """Drop all batches: what they were for is finished."""
        with told_disk_errors(self.folder):
            if self.folder.is_dir():
                shutil.rmtree(self.folder)

    def _path(self, key: str, begin: int) -> Path:
        return self.folder / f"{key}-{begin:08}.safetensors"


def _tensors(part: Part) -> dict[str, Tensor]:
    return {"x_adv": part.x_adv.contiguous(), "margins": part.margins.contiguous()}


def _digest(part: Part) -> str:
    digest = hashlib.sha256(f"{part.name}/{part.last}".encode())
    for name, tensor in sorted(_tensors(part).items()):
        digest.update(f"{name}/{tuple(tensor.shape)}".encode())
        digest.update(tensor.to(torch.float32).numpy().tobytes())
    return digest.hexdigest()
