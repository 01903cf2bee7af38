"""docs/robustness.md names every attack, corruption and check that there is."""

import re
from pathlib import Path

import pytest

from kdpipe.foundation.plugins import names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["kdpipe.robustness.attacks.methods", "kdpipe.robustness.corruptions"])
def test_every_plug_in_has_its_row(package):
    assert names(package)
    for name in names(package):
        assert f"| `{name}` |" in PAGE


def test_every_check_has_its_row():
    source = (ROOT / "robustness" / "masking.py").read_text(encoding="utf-8")
    checks = set(re.findall(r'(?:MaskingCheck\(\s*name=|\n    name = )"([^"]+)"', source))
    assert len(checks) == 8
    for check in checks:
        assert f"| {check} |" in PAGE
