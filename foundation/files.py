"""Files that are there whole or not at all, and their digests."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdpipe.foundation.errors import UnavailableError

_CHUNK_BYTES = 1 << 20


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary sibling, flushed to disk and renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with told_disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON with a newline at the end; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def canonical_json(value: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no blanks, UTF-8; what fingerprints are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def told_disk_errors(path: Path) -> Iterator[None]:
    """Turns what a disk refuses (full, read-only, no permission) into an UnavailableError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"cannot write: {error.strerror or error}",
            at=path,
            do="free space or choose a writable folder, then run the same command again; finished work is kept",
        ) from error
