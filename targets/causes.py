"""Why int8 is not faster here: one pure function for each cause, from what was seen to a finding with figures, share and remedy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdpipe.targets.devices.agent import copy_rate
from kdpipe.targets.measurements import Cause, Finding, NodePrecision
from kdpipe.targets.observed import Observed
from kdpipe.targets.timing import WITHIN_BATCH, Times

WORTH_NAMING = 0.01  # of an inference's time; what accounts for less is not told
OVERHEAD_SHARE = 0.3  # from this share on, what a sample pays alone and not within a batch is a cause
FIXED_GAIN = 0.1  # of an inference's time, which free sides must cost to be a cause
FIRST_TIMES = 10.0  # how many later inferences the first one must take as long as
FAST_ENOUGH = 1.3  # times as fast as float: what counts as faster, for a layer and for the file
MEMORY_BOUND = 0.4  # of a plain copy's rate: a node that moves its bytes as fast as this waits for memory
_LEAST_BYTES = 1 << 15  # a node that moves less is measured by its overhead
_THREADS_GAIN = 1.1
_NAMED = 4  # nodes that a finding names in its text; `nodes` has all


@dataclass(frozen=True)
class Evidence:
    """All that findings are made of. `against`: what the float file is in the same runtime, where there is one."""

    seen: Observed
    times: Times
    instruction_sets: frozenset[str]
    against: Observed | None = None
    copies: Callable[[int], float] = copy_rate


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Every cause that is there, the one with the largest share first, those without a share last."""
    found = [finding for look in _LOOKS for finding in look(evidence)]
    told = [finding for finding in found if finding.share is None or finding.share >= WORTH_NAMING]
    return tuple(sorted(told, key=lambda finding: -1.0 if finding.share is None else finding.share, reverse=True))


_IN_FLOAT: Mapping[Cause, tuple[str, str]] = {
    "residual-add": (
        "a sum that is not quantized on all sides keeps its neighbours in float",
        "quantize both operands and the result of the addition; where the runtime still leaves it, an addition of equal scales costs least",
    ),
    "split-activation": (
        "a ReLU stands between a layer and a quantizer that does not cut off what is negative by itself (its zero point is above the lowest value)",
        "give the quantizer behind a ReLU the lowest value of its type as zero point: 0 of uint8, -128 of int8; zero point 0 of int8 fuses in TensorRT only",
    ),
    "signed-activation": (
        "activations are int8, and on x86 ONNX Runtime has integer kernels for uint8 activations only; it shifts int8 to uint8 by itself only where one "
        "operator alone takes the tensor, so that what stands at the other tensors stays in float",
        "for x86 quantize activations as uint8 (profile cpu): the same steps, shifted by 128; on ARM there is nothing to mend, int8 is what its kernels take",
    ),
    "per-channel-activation": (
        "an activation is quantized per channel, which no integer kernel takes",
        "quantize activations per tensor; per channel is for weights (NNCF's default before depthwise convolutions is per channel)",
    ),
    "float-operator": (
        "an operator without an integer kernel in this runtime stands within the quantized part",
        "replace it (ReLU for HardSwish or SiLU), or leave the layers around it in float: each change of type costs a pass over memory",
    ),
    "float-output": (
        "the result is not quantized, so that the layer before it stays in float",
        "harmless for the last layer of a network; elsewhere quantize the result",
    ),
    "weights-only": (
        "only weights are quantized: they are widened to float at each inference and computed in float",
        "this saves size, not time; quantize activations too (static int8) for speed",
    ),
    "not-quantized": ("these layers have no Q/DQ in the file", "quantize them, or accept them as the price of accuracy: kdpipe names the least such layers"),
    "run-in-float": (
        "they are quantized in the file, but this runtime has no integer kernel for their types and shapes",
        "compare the scheme with the runtime's: `kdpipe targets check FILE --profile cpu` names each node",
    ),
    "leftover-quantizers": (
        "these quantize and dequantize nodes were not fused into a layer and cost a pass over memory each",
        "put quantizers where the runtime fuses them: behind the activation, one scale for all that a tensor meets",
    ),
}


def _float_parts(evidence: Evidence) -> Iterator[Finding]:
    """What runs in float, and the Q/DQ around it, by the reason that the file gives."""
    seen = evidence.seen
    groups: dict[Cause, list[NodePrecision]] = {}
    quantized = any(node.precision == "int8" for node in seen.nodes) or bool(seen.leftover)
    for node in seen.nodes:
        left = node.name in seen.leftover
        if (node.precision == "int8" and not left) or node.name in seen.layout or node.name in seen.shapes:
            continue
        reason = seen.reasons.get(node.name)
        cause: Cause | None = reason.cause if reason is not None else "leftover-quantizers" if left else None
        if cause is None and node.name in seen.compute:
            cause = "run-in-float" if quantized else "not-quantized"
        if cause is not None:
            groups.setdefault(cause, []).append(node)
    for cause, nodes in groups.items():
        names = tuple(node.name for node in nodes)
        layers = [node.name for node in nodes if node.name in seen.compute]
        begins = dict.fromkeys(seen.reasons[name].because for name in names if name in seen.reasons)
        what, remedy = _IN_FLOAT[cause]
        counted = [f"{len(layers)} of {len(seen.compute)} convolutions and linear layers run in float: {_listed(layers)}"] if layers else []
        others = [name for name in names if name not in layers]
        counted += [f"{len(others)} other nodes that a fused layer does not have: {_listed(others)}"] if others and quantized else []
        where = f" (at {_listed(tuple(begins))})" if begins and set(begins) != set(layers) else ""
        if layers or quantized:
            yield Finding(
                cause=cause, text=f"{what}{where}: {'; '.join(counted)}{_time(seen.share(names))}", nodes=names, share=seen.share(names), remedy=remedy
            )


def _layout(evidence: Evidence) -> Iterator[Finding]:
    seen = evidence.seen
    share = seen.share(seen.layout)
    if seen.layout and (share is None or share >= 3 * WORTH_NAMING):
        yield Finding(
            cause="layout",
            text=f"{len(seen.layout)} nodes only change the memory layout: {_listed(seen.layout)}{_time(share)}",
            nodes=seen.layout,
            share=share,
            remedy="keep channels-first operators together: a Reshape or Transpose between convolutions turns the tensor around twice",
        )


def _shapes(evidence: Evidence) -> Iterator[Finding]:
    seen, times = evidence.seen, evidence.times
    gained = 1 - times.fixed / times.alone if times.fixed is not None and times.alone is not None else None
    share = seen.share(seen.shapes) if seen.shapes else 0.0
    if (gained is not None and gained >= FIXED_GAIN) or share is None or share >= WORTH_NAMING:
        parts = []
        if gained is not None and times.alone is not None:
            parts.append(f"one inference takes {_ms(times.alone)} with free sides and {_ms(times.fixed or 0)} with all sides fixed")
        if seen.shapes:
            parts.append(f"{len(seen.shapes)} nodes only compute shapes: {_listed(seen.shapes)}{_time(share)}")
        yield Finding(
            cause="dynamic-shape",
            text=f"the input has free sides: {'; '.join(parts)}",
            nodes=seen.shapes,
            share=None if gained is None and share is None else max(0.0, gained or 0.0, share or 0.0),
            remedy='export with fixed sides: batch = "static" in the target\'s profile; sizes that the network computes by itself written as constants',
        )


def _instructions(evidence: Evidence) -> Iterator[Finding]:
    sets, seen = evidence.instruction_sets, evidence.seen
    layers = tuple(node.name for node in seen.nodes if node.name in seen.compute and node.precision == "int8")
    lacking = None
    if "x86-64" in sets and "vnni" not in sets:
        lacking = "VNNI", "an int8 multiplication costs about as much as a float one, only memory traffic is saved"
    elif "aarch64" in sets and sets.isdisjoint({"asimddp", "i8mm"}):
        lacking = "asimddp", "int8 values are widened to 16 bits first, which leaves little gain over float"
    if lacking is not None and layers:
        yield Finding(
            cause="missing-instruction",
            text=f"this CPU has no int8 dot product ({lacking[0]}): {lacking[1]}; {len(layers)} layers multiply in int8{_time(seen.share(layers))}",
            nodes=layers,
            share=seen.share(layers),
            remedy="nothing in the file helps: choose float, a smaller network, or a CPU with the instruction",
        )


def _small_layers(evidence: Evidence) -> Iterator[Finding]:
    times, seen = evidence.times, evidence.seen
    if times.within_batch is None or not times.alone:
        return
    share = min(1.0, max(0.0, 1 - times.within_batch / times.alone))
    if share >= OVERHEAD_SHARE:
        short = [node for node in seen.nodes if node.microseconds is not None and node.microseconds < 10 and node.name in seen.compute]
        layers = f"; {len(short)} of {len(seen.compute)} layers take less than 10 µs: {_listed([node.name for node in short])}" if short else ""
        part = "most" if share >= 0.5 else "much"
        yield Finding(
            cause="small-layers",
            text=f"the network is tiny: one sample takes {_ms(times.alone)} alone and {_ms(times.within_batch)} within a batch of {WITHIN_BATCH}; "
            f"{part} of a single inference ({100 * share:.0f} %) is the fixed cost of its {len(seen.nodes)} nodes, which int8 does not shorten{layers}",
            nodes=tuple(node.name for node in short),
            share=share,
            remedy="fewer and wider layers, or samples in batches; at this size int8 saves size and energy rather than time",
        )


def _memory(evidence: Evidence) -> Iterator[Finding]:
    bound: list[tuple[NodePrecision, float]] = []
    for node in evidence.seen.nodes:
        moved = (node.bytes_read or 0) + (node.bytes_written or 0)
        if node.name in evidence.seen.layout or moved < _LEAST_BYTES or not node.microseconds or (node.share or 0) < WORTH_NAMING:
            continue
        rate = moved / node.microseconds * 1e6 / evidence.copies(moved)
        if rate >= MEMORY_BOUND:
            bound.append((node, rate))
    if bound:
        names = tuple(node.name for node, _ in bound)
        moved = sum((node.bytes_read or 0) + (node.bytes_written or 0) for node, _ in bound)
        spent = sum(node.microseconds or 0 for node, _ in bound)
        share = evidence.seen.share(names)
        yield Finding(
            cause="memory-bound",
            text=f"{len(names)} nodes wait for memory, not for arithmetic: {_listed(names)} move {moved / 1e6:.2f} MB in {spent / 1e3:.3f} ms, "
            f"{100 * min(rate for _, rate in bound):.0f} % or more of a plain copy's rate{_time(share)}",
            nodes=names,
            share=share,
            remedy="int8 helps them only by moving fewer bytes: quantize what flows between them, fuse or drop them, shrink the early, large feature maps",
        )


def _kernels(evidence: Evidence) -> Iterator[Finding]:
    """Layers that run in int8 and are not faster than the same layer of the float file."""
    if evidence.against is None:
        return
    float_times = _layer_times(evidence.against)
    slow: list[tuple[NodePrecision, float]] = []
    for node in evidence.seen.nodes:
        if node.name not in evidence.seen.compute or node.precision != "int8" or node.microseconds is None or (node.share or 0) < WORTH_NAMING:
            continue
        other = next((float_times[name] for name in (node.name, *evidence.seen.originals.get(node.name, ())) if name in float_times), None)
        if other is not None and node.microseconds * FAST_ENOUGH > other:
            slow.append((node, other))
    if slow:
        slow.sort(key=lambda pair: -(pair[0].microseconds or 0))
        names = tuple(node.name for node, _ in slow)
        figures = ", ".join(f"{node.name} {node.microseconds:.1f} µs against {other:.1f} in float" for node, other in slow[:_NAMED])
        share = evidence.seen.share(names)
        yield Finding(
            cause="slow-kernel",
            text=f"{len(slow)} layers run in int8 and are not {FAST_ENOUGH} times as fast as in float: {figures}{_time(share)}",
            nodes=names,
            share=share,
            remedy="this runtime's integer kernel is no better at these shapes: try the other runtime, channel counts in multiples of 16, or float for them",
        )


def _threads(evidence: Evidence) -> Iterator[Finding]:
    times = evidence.times
    if times.threads == 1 or not times.alone:
        return
    if times.threads > times.cores and times.all_cores is not None:
        yield Finding(
            cause="threads",
            text=f"{times.threads} threads on {times.cores} cores that this process may use: one inference takes {_ms(times.alone)}, "
            f"with {times.cores} threads {_ms(times.all_cores)}",
            share=max(0.0, 1 - times.all_cores / times.alone),
            remedy=f"set at most {times.cores} threads: threads that wait for each other's core wait at every node",
        )
    if times.one_thread is None:
        return
    gain = times.one_thread / times.alone
    float_gain = times.float_one_thread / times.float_alone if times.float_alone and times.float_one_thread else None
    behind = float_gain is not None and float_gain > _THREADS_GAIN * gain
    if gain < _THREADS_GAIN or behind:
        against = "" if float_gain is None else f"; they make float {float_gain:.2f} times as fast"
        yield Finding(
            cause="threads",
            text=f"{times.threads} threads make int8 {gain:.2f} times as fast as one "
            f"({_ms(times.one_thread)} with one, {_ms(times.alone)} with {times.threads}){against}",
            share=max(0.0, 1 - gain / (float_gain if behind and float_gain is not None else 1.0)),
            remedy="int8 layers are short, so that starting and joining threads weighs more: use as many threads as pay, for each file by itself",
        )


def _first_run(evidence: Evidence) -> Iterator[Finding]:
    times = evidence.times
    if times.first is not None and times.alone is not None and times.first >= FIRST_TIMES * times.alone:
        yield Finding(
            cause="first-run",
            text=f"the first inference takes {_ms(times.first)}, later ones {_ms(times.alone)}: the runtime still prepares kernels and memory in it",
            remedy="warm up before measuring, and keep the session open between requests; a process for each request pays this every time",
        )


def _fallback(evidence: Evidence) -> Iterator[Finding]:
    names = evidence.seen.fell_back
    if names:
        share = evidence.seen.share([node.name for node in evidence.seen.nodes if node.name in names])
        yield Finding(
            cause="fell-back",
            text=f"the accelerator does not take {len(names)} nodes, the CPU runs them: {_listed(names)}{_time(share)}",
            nodes=names,
            share=share,
            remedy="each change between accelerator and CPU copies the tensor: replace these operators, or run the whole file on the CPU",
        )


_LOOKS: Sequence[Callable[[Evidence], Iterator[Finding]]] = (
    _float_parts,
    _layout,
    _shapes,
    _instructions,
    _small_layers,
    _memory,
    _kernels,
    _threads,
    _first_run,
    _fallback,
)


def _layer_times(seen: Observed) -> dict[str, float]:
    """Microseconds of each layer under all names that it has."""
    found: dict[str, float] = {}
    for node in seen.nodes:
        if node.name in seen.compute and node.microseconds is not None:
            found.update(dict.fromkeys((node.name, *seen.originals.get(node.name, ())), node.microseconds))
    return found


def _time(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:.0f} % of the time)"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
