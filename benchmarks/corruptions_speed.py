"""Seconds of one core for each corruption: all five severities of 1,000 random colour images.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/corruptions_speed.py [SIDE] [IMAGES]

CPU time of the process, so that a busy machine disturbs little.
"""

import sys
import time

import numpy as np

from kdpipe.robustness.corruption import COMMON, EXTRA, SEVERITIES, corrupt

_BATCH = 256


def main() -> None:
    side, images = (int(given) for given in (*sys.argv[1:], *("32", "1000")[len(sys.argv) - 1 :]))
    x = np.random.default_rng(0).random((images, 3, side, side), dtype=np.float32)
    seconds = {}
    for name in (*COMMON, *EXTRA):
        begin = time.process_time()
        for severity in SEVERITIES:
            for first in range(0, images, _BATCH):
                chosen = np.arange(first, min(first + _BATCH, images))
                corrupt(name, x[chosen], severity, seed=0, indices=chosen)
        seconds[name] = time.process_time() - begin
        print(f"{name:20s} {seconds[name]:6.2f} s", flush=True)
    print(f"{'all 75 of common':20s} {sum(seconds[name] for name in COMMON):6.2f} s")


if __name__ == "__main__":
    main()
