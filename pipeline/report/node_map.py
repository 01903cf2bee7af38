"""The node precision map: every node of the graph as the runtime runs it, in order; filled where it is int8, hollow where it is not."""

from collections.abc import Sequence

from markupsafe import Markup

from kdpipe.pipeline.report.svg import WIDTH, chart, element, label
from kdpipe.targets.measurements import NodePrecision

CELL = 26.0
IN_ROW = 16


def is_int8(node: NodePrecision) -> bool:
    """Whether the runtime runs the node in 8-bit integers."""
    return node.precision == "int8"


def node_map(nodes: Sequence[NodePrecision]) -> Markup:
    """A cell for each node, read like text; int8 filled with its operator's first letters, others hollow with the same."""
    rows = (len(nodes) + IN_ROW - 1) // IN_ROW
    parts = []
    for k, node in enumerate(nodes):
        x, y = (k % IN_ROW) * CELL + 2, (k // IN_ROW) * CELL + 2
        kind = "cell int8" if is_int8(node) else "cell float"
        fused = f" with {', '.join(node.fused)}" if node.fused else ""
        time = "" if node.share is None else f", {100 * node.share:.0f} % of the time"
        tip = element("title", f"{node.name}: {node.operator}{fused}, {node.precision}{time}")
        parts.append(element("rect", tip, x=x, y=y, width=CELL - 4, height=CELL - 4, rx=3, class_=kind))
        parts.append(label(x + (CELL - 4) / 2, y + 15, _letters(node.operator), class_=f"{kind} letters", anchor="middle"))
    told = f"{sum(map(is_int8, nodes))} of {len(nodes)} nodes run in int8"
    return chart(rows * CELL + 2, "Precision of each node", told, *parts, width=WIDTH)


def _letters(operator: str) -> str:
    """`Conv` for both Conv and QLinearConv, cut to what a cell holds: `Co`."""
    for prefix in ("QLinear", "com.microsoft.", "Quantize", "Dequantize"):
        if operator.startswith(prefix) and len(operator) > len(prefix):
            return {"Quantize": "Q", "Dequantize": "DQ"}.get(prefix) or operator.removeprefix(prefix)[:2]
    return operator[:2]
