"""What holds for all tests."""

import os

# Before torch is imported: with spinning threads a test that takes a second on an idle machine takes minutes on a busy one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
