"""The C library's memory, kept between training steps instead of returned: a step frees and takes the same tensors again and again.

By default glibc maps large blocks one by one and gives them back at once, or trims the heap as soon as much of it is free; each
block then comes back as pages that the system clears and maps, one fault per 4 KiB: `docs/decisions/kept-memory.md`. No result changes.
"""

import ctypes
import logging
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_KEPT = 1 << 30
"""bytes: blocks below come from the heap, and so much of it may lie free"""
_LARGEST_THRESHOLD_OF_OLD_GLIBC = 32 << 20
_GROWTH = 64 << 20

_log = logging.getLogger(__name__)


def keep_freed_memory() -> bool:
    """From now on this process keeps up to 1 GiB of freed memory for its next tensors; False where the C library is not glibc, and nothing changes."""
    library = _library()
    if library is None:
        return False
    kept = library.mallopt(_MMAP_THRESHOLD, _KEPT) or library.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD_OF_OLD_GLIBC)
    kept = kept and library.mallopt(_TRIM_THRESHOLD, _KEPT) and library.mallopt(_TOP_PAD, _GROWTH)
    return bool(kept)


def release_freed_memory() -> None:
    """Give back what is free now, so that a peak measured from here on is that of what follows."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        return library
    _log.debug("the C library is not glibc: freed memory is handled as it does by default")
    return None
