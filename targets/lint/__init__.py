"""Offline checks of a model file, ours or foreign, against a profile: what the target would refuse, saturate or not fuse.

Every finding names node, rule, reason and remedy, and is an error (the target refuses the file or computes something else)
or a warning (it runs, slower or less exactly than it could). No hardware is needed, and none is replaced: a clean file may
still meet a limit of a driver or plug-in that only the device knows.
"""

from kdpipe.targets.lint.check import lint
from kdpipe.targets.lint.finding import LintFinding

__all__ = ["LintFinding", "lint"]
