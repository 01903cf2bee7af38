"""All rules on one file: what `lint` is."""

from pathlib import Path

from kdpipe.targets.lint.activations import activations
from kdpipe.targets.lint.finding import LintFinding
from kdpipe.targets.lint.float16 import float16
from kdpipe.targets.lint.graph import graphs_of
from kdpipe.targets.lint.ir import lint_ir
from kdpipe.targets.lint.operators import operators
from kdpipe.targets.lint.placement import pairs, placement, tensorrt, unified_scales
from kdpipe.targets.lint.schemes import schemes
from kdpipe.targets.lint.shapes import content, doubles, is_quantized, opset, shapes
from kdpipe.targets.lint.weights import biases, integer_operators, weights
from kdpipe.targets.profile import Profile

_ANYWHERE = (doubles, operators, shapes, schemes)
_WHERE_QUANTIZED = (activations, weights, integer_operators, biases, placement, tensorrt, unified_scales, pairs)


def lint(model: Path, profile: Profile) -> tuple[LintFinding, ...]:
    """All findings of the file (.onnx, or OpenVINO IR .xml) against the profile and the scheme of its variant, in the order of the rules.

    A file without any quantization is told so once, and judged by what else counts for it. Raises ConfigError when there is no such file,
    VerificationError when it is not a valid one.
    """
    if model.suffix == ".xml" and model.is_file():
        return tuple(lint_ir(model, profile))
    graphs = graphs_of(model)
    rules = (*_ANYWHERE, *(_WHERE_QUANTIZED if is_quantized(graphs) else ()), float16)
    return (
        *opset(graphs[0], profile),
        *content(graphs, profile),
        *(finding for rule in rules for graph in graphs for finding in rule(graph, profile)),
    )
