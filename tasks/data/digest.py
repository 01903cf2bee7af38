"""The digest of a data set's content: samples, labels, classes, order and split membership, wherever the files lie."""

import hashlib
from collections.abc import Mapping

from kdpipe.foundation.files import canonical_json
from kdpipe.tasks.data.inspection.findings import SplitName
from kdpipe.tasks.data.samples import RowsSplit

_VERSION = 1


def content_digest(classes: tuple[str, ...], splits: Mapping[SplitName, RowsSplit]) -> str:
    """The hexadecimal sha256 over all splits, in one pass with flat memory.

    Samples count as they are stored (pixels, or the bytes of the encoded image): nothing is decoded for it.
    Each variable-length piece is preceded by its length, so that no two contents give one stream.
    """
    digest = hashlib.sha256()

    def add(piece: bytes | memoryview) -> None:
        digest.update(memoryview(piece).nbytes.to_bytes(8, "little"))
        digest.update(piece)

    add(canonical_json({"version": _VERSION, "classes": list(classes)}))
    for name, split in splits.items():
        add(canonical_json({"split": name, "count": len(split), "shape": list(split.samples.shape), "storage": split.samples.storage}))
        add(split.labels.astype("<i8").tobytes())
        for piece in split.samples.stored(split.rows):
            add(piece)
    return digest.hexdigest()
