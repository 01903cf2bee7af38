"""In processes of their own: the settings hold for a whole process, and for its life."""

import ctypes
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")), reason="needs glibc")

FAULTS = """
import resource, sys
import numpy as np
from kdpipe.foundation.allocator import keep_freed_memory, release_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def step():
    tensors = [np.full(1 << 21, 1.0, np.float32) for _ in range(8)]  # 8 MiB each, as a convolution's output

step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
release_freed_memory()
with open("/proc/self/statm") as file:
    print(int(file.read().split()[1]) * resource.getpagesize())
"""


def faults_and_resident_bytes(setting):
    done = subprocess.run([sys.executable, "-c", FAULTS, setting], capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


@glibc
def test_tensors_of_equal_size_come_back_without_page_faults_and_are_released_when_asked():
    kept, resident = faults_and_resident_bytes("kept")
    default, resident_by_default = faults_and_resident_bytes("default")
    assert kept < 2048  # of the 160,000 pages that ten steps touch
    assert kept < default
    assert abs(resident - resident_by_default) < 48 << 20  # bytes, less than one step's 64 MiB


def test_another_c_library_is_left_alone(monkeypatch):
    from kdpipe.foundation import allocator

    monkeypatch.setattr(allocator, "_library", lambda: None)
    assert allocator.keep_freed_memory() is False
    allocator.release_freed_memory()
