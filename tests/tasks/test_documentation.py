"""The pages on data and networks: their blocks run, their tables are those of the code.

`python tests/tasks/test_documentation.py` prints the tables.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.foundation.plugins import imported
from kdpipe.tasks.augment import Blur, Crop, Flip, Noise
from kdpipe.tasks.image_classification import ImageClassification
from kdpipe.tasks.networks.named import NAMES, named_network

DOCS = Path(__file__).parents[2] / "docs"


def key_rows():
    fields = [(field.alias or name, field) for name, field in ImageClassification.model_fields.items() if field.description]
    return [f"| `{key}` | {_default(field)} | {field.description} |" for key, field in fields]


def _default(field):
    return "" if field.is_required() or field.default is None else f"{field.default}"


def network_rows():
    return [f"| `{name}` | {_thousands(count)} | {macs / 1e6:.1f} M |" for name in NAMES for count, macs in [_figures(name)]]


def _figures(name):
    named = named_network(name, at=name)
    module = imported(named.factory, at=name)(in_channels=1, classes=10, image_size=28, **named.arguments).eval()
    macs = 0

    def count(layer, _, output):
        nonlocal macs
        macs += layer.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1)

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, 1, 28, 28))
    return sum(parameter.numel() for parameter in module.parameters()), macs


def _thousands(count):
    return f"{count / 1e6:.2f} M" if count >= 1_000_000 else f"{count / 1e3:.0f} k"


@pytest.mark.parametrize("page", ["data.md", "networks.md"])
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)

    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_the_keys_of_the_task_are_those_of_the_code():
    page = (DOCS / "data.md").read_text()

    assert [row for row in key_rows() if row not in page] == []


def test_the_networks_are_those_of_the_code():
    page = (DOCS / "networks.md").read_text()

    assert [row for row in network_rows() if row not in page] == []


def test_every_augmentation_is_told():
    page = (DOCS / "data.md").read_text()

    assert all(f"| `{step.name}` |" in page for step in (Flip(), Crop(), Noise(), Blur()))
    assert f"`std` = {Noise().std}" in page
    assert f"`sigma` = {Blur().sigma}" in page


if __name__ == "__main__":
    print("\n".join([*key_rows(), "", *network_rows()]))
