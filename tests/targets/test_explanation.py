from types import SimpleNamespace

import numpy as np
import pytest

from kdpipe.targets.explanation import Graph, Timing, explanation, findings, timing
from kdpipe.targets.measurements import NodePrecision

FAST = frozenset({"x86-64", "avx2", "vnni"})
QUICK = Timing(alone_ms=1.0, within_batch_ms=0.9)


def graph(**parts) -> Graph:
    return Graph(**{"nodes": (), "compute": frozenset({"a", "b"}), "unfused": (), "leftover": (), "layout_changes": (), **parts})


def test_a_file_with_no_cause_has_no_finding():
    assert findings(graph(layout_changes=("in", "out")), QUICK, FAST) == ()


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"unfused": ("a",)}, "1 of 2 convolutions and linear layers are quantized in the file but run in float: a"),
        ({"leftover": tuple("pqrstu")}, "6 quantize or dequantize nodes were not fused into a layer and cost a pass over memory each: p, q, r, s and 2 more"),
        ({"layout_changes": ("in", "mid", "out")}, "the runtime inserted 3 nodes that only change the memory layout: in, mid, out"),
    ],
    ids=["unfused", "leftover", "layout"],
)
def test_each_cause_in_the_graph_is_named(parts, said):
    assert findings(graph(**parts), QUICK, FAST) == (said,)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"x86-64", "avx2"}, "no int8 dot product (VNNI)"),
        ({"aarch64", "asimd"}, "no int8 dot product (asimddp)"),
        ({"aarch64", "asimd", "asimddp"}, None),
        (set(), None),
    ],
    ids=["avx2", "cortex-a72", "cortex-a76", "unknown"],
)
def test_a_missing_dot_product_is_named(sets, said):
    found = findings(graph(), QUICK, frozenset(sets))
    assert found == () if said is None else said in found[0]


@pytest.mark.parametrize(
    ("within", "said"), [(0.2, "most of a single inference (80 %)"), (0.65, "much of a single inference (35 %)"), (0.8, None), (None, None), (1.2, None)]
)
def test_overhead_is_a_cause_from_a_third_of_the_time_on(within, said):
    found = findings(graph(), Timing(1.0, within), FAST)
    assert found == () if said is None else said in found[0]


def test_the_share_counts_convolutions_and_linear_layers_only():
    nodes = tuple(NodePrecision(name=name, operator="Conv", precision=precision) for name, precision in [("a", "int8"), ("b", "float32"), ("pool", "int8")])
    assert explanation("any", graph(nodes=nodes), QUICK).int8_share == 0.5
    assert explanation("any", graph(compute=frozenset()), QUICK).int8_share == 0.0


def test_timing_divides_the_time_of_a_batch_by_its_samples():
    shapes = []
    loaded = SimpleNamespace(batch=None, run=lambda batch: shapes.append(batch.shape))
    found = timing(loaded, np.zeros((3, 2), np.float32))
    assert {shape[0] for shape in shapes} == {1, 16}
    assert found.within_batch_ms < found.alone_ms  # the function's cost does not depend on the batch
    static = SimpleNamespace(batch=2, run=lambda batch: None)
    assert timing(static, np.zeros((3, 2), np.float32)).within_batch_ms is None
