"""Named random streams: each use draws from its own generator, so that a new use never shifts the others."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream(seed: int, name: str) -> torch.Generator:
    """An independent CPU random stream for one use, e.g. `stream(config.seed, "distill/attack/epoch-3")`.

    Equal arguments give equal streams on every machine; nothing global is seeded or read.
    """
    return torch.Generator().manual_seed(_derived_seed(seed, name))


def numpy_stream(seed: int, name: str) -> np.random.Generator:
    """The same as `stream`, as a numpy generator (PCG64); its numbers are not those of `stream`."""
    return np.random.Generator(np.random.PCG64(_derived_seed(seed, name)))


@contextmanager
def lent_to_torch(generator: torch.Generator) -> Iterator[None]:
    """Layers (initialisation, dropout) draw from torch's global generator: meanwhile that one is seeded by a draw from `generator`, afterwards put back."""
    state = torch.random.get_rng_state()
    torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=generator)))
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _derived_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: manual_seed takes a signed 64-bit number
