"""`kdpipe explain`: node by node what a runtime made of a file, and why int8 is, or is not, faster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.pipeline.options import AsJson, Debug
from kdpipe.pipeline.printing import print_json, print_table, table

if TYPE_CHECKING:
    from rich.table import Table

    from kdpipe.targets.measurements import Explanation

_WORTH_A_ROW = 0.01
_BAR = 20  # characters of a node that takes all the time


def explain(
    subject: Annotated[Path, typer.Argument(help="A bundle's folder, an .onnx file, or an IR's .xml.", metavar="FILE|BUNDLE")],
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="A runtime; several times for several.", show_default="the bundle's, else onnxruntime and openvino")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="The float file of the same network.", show_default="a bundle's own, where its project's store has it")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads of the runtime.")] = 1,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="Samples to run on, an .npy of float32.", show_default="noise in the contract's range")
    ] = None,
    all_nodes: Annotated[bool, typer.Option("--all-nodes", help="Also the nodes that take less than 1 % of the time.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Explain what a runtime makes of a file: the nodes with their precision, time and traffic, and why int8 is not faster."""
    from kdpipe.pipeline.explaining import explain as run

    found = run(subject, runtimes=tuple(runtime or ()), against=against, threads=threads, inputs=inputs)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print(f"{found.model}, on {found.inputs}" + (f", against {found.against}" if found.against else "; no float file to compare with: --against float.onnx"))
    for explanation in found.explanations:
        print()
        print(headline(explanation))
        print_table(_nodes(explanation, all_nodes))
        for line in answers(explanation):
            print(line)
    for name, why in found.not_asked.items():
        print(f"\n{name}: {why}")


def headline(explanation: "Explanation") -> str:
    """`onnxruntime 1.32.0 CPU, 1 thread: 0.083 ms, 1.9 times as fast as float; 75 % of the convolutions and linear layers in int8`."""
    threads = f", {explanation.threads} thread{'s' if explanation.threads != 1 else ''}" if explanation.threads else ""
    time = f": {explanation.milliseconds:.3f} ms" if explanation.milliseconds else ""
    ratio = f", {1 / explanation.ratio_to_float:.2f} times as fast as float" if explanation.ratio_to_float else ""
    layers = (
        f"; {100 * explanation.int8_share:.0f} % of the convolutions and linear layers in int8"
        if explanation.nodes and explanation.int8_share is not None
        else ""
    )
    return f"{explanation.runtime}{threads}{time}{ratio}{layers}"


def answers(explanation: "Explanation") -> list[str]:
    """The causes as lines, the weightiest first, each with what to do."""
    busy = [explanation.too_busy] if explanation.too_busy else []
    if not explanation.findings and busy:
        return busy
    if not explanation.findings:
        return ["nothing was found that keeps int8 from being faster"] if explanation.nodes else ["the runtime tells nothing of itself"]
    lines = busy
    for finding in explanation.findings:
        share = "   –" if finding.share is None else f"{100 * finding.share:3.0f}%"
        lines.append(f"{share}  {finding.cause or 'finding'}: {finding.text}")
        lines += [f"      do: {finding.remedy}"] if finding.remedy else []
    return lines


def _nodes(explanation: "Explanation", all_nodes: bool) -> "Table":
    made = table("node", "operator", "precision", "time", "µs", "kB read", "kB written")
    shown = [node for node in explanation.nodes if all_nodes or node.share is None or node.share >= _WORTH_A_ROW]
    for node in shown:
        bar = "" if node.share is None else f"{'█' * max(1, round(_BAR * node.share))} {100 * node.share:.0f} %"
        figures = [f"{value:,.1f}" if value is not None else "" for value in (node.microseconds, _kilo(node.bytes_read), _kilo(node.bytes_written))]
        made.add_row(node.name, node.operator, node.precision, bar, *figures)
    left = len(explanation.nodes) - len(shown)
    if left:
        made.add_row(f"{left} more below 1 %", "", "", "", "", "", "")
    return made


def _kilo(size: int | None) -> float | None:
    return None if size is None else size / 1000
