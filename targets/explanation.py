"""A runtime explains what it made of a file, and why int8 is, or is not, faster in it."""

from dataclasses import replace
from pathlib import Path

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.causes import Evidence, findings
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import Explanation
from kdpipe.targets.observed import NOT_TOLD, Observed, Opening
from kdpipe.targets.runtimes.runtime import Hint, found_runtime, open_session
from kdpipe.targets.timing import Times, times


def explained(opening: Opening, model: Path, example: Float32Array, *, threads: int, against: Path | None = None) -> Explanation:
    """What `opening` makes of `model`, looked at and timed on `example` (n >= 1 real samples); `against`: the float file of the same network."""
    seen = opening.observe(model, threads=threads, example=example)
    other = None if against is None else opening.observe(against, threads=threads, example=example)
    timed = times(opening, model, example, threads=threads, against=against)
    return concluded(opening.name, Evidence(seen, timed, probe(), other))


def why_not_faster(runtime: str, int8: Path, against: Path, example: Float32Array, *, threads: int = 1, hint: Hint = "latency") -> Explanation:
    """Why the file `int8` is not faster than the float file `against` of the same network in a runtime, here and now: `findings`, weightiest first.

    `ratio_to_float` is int8's time over float's. A runtime of one's own that tells nothing has no findings. Raises as `open_session`.
    """
    if int8 == against:
        raise ConfigError("both files are the same", at=int8, do="name the int8 file and the float file of one network")
    opening = getattr(found_runtime(runtime), "opening", None)
    with open_session(runtime, int8, threads=threads, hint=hint) as session, open_session(runtime, against, threads=threads, hint=hint) as other:
        other(example[:1])  # both load and take the sample, before anything is timed
        session(example[:1])
        if opening is None:
            return session.explain(example)
    return explained(opening(hint), int8, example, threads=threads, against=against)


def concluded(runtime: str, evidence: Evidence) -> Explanation:
    """The nodes, the share of convolutions and linear layers in int8, and every cause that was found; of times those alone that can be claimed."""
    claimed = replace(evidence, seen=evidence.seen.claimable, against=None if evidence.against is None else evidence.against.claimable)
    seen, timed = claimed.seen, claimed.times
    return Explanation(
        runtime=runtime,
        nodes=seen.nodes,
        int8_share=int8_share(seen),
        findings=findings(claimed),
        threads=timed.threads,
        milliseconds=timed.alone,
        ratio_to_float=_ratio(timed),
        too_busy=_too_busy(evidence),
    )


def _too_busy(evidence: Evidence) -> str | None:
    profiles = [it.unsteady for it in (evidence.seen, evidence.against) if it is not None and it.unsteady is not None]
    lost = [*dict.fromkeys([*profiles, *evidence.times.unsteady])]
    if not lost:
        return None
    all_of_it = profiles and evidence.times.alone is None
    what = "the causes that rest on time are" if all_of_it else "what rests on these times is"
    return f"the machine was too busy, {what} not claimed: {'; '.join(lost)}"


def int8_share(seen: Observed) -> float | None:
    """Of the convolutions and linear layers, in [0, 1]; 0 where there are none, None where the runtime does not tell of its nodes."""
    if any(node.precision == NOT_TOLD for node in seen.nodes):
        return None
    layers = [node for node in seen.nodes if node.name in seen.compute]
    return sum(node.precision == "int8" for node in layers) / len(layers) if layers else 0.0


def _ratio(timed: Times) -> float | None:
    return None if timed.float_alone is None or timed.alone is None else timed.alone / timed.float_alone
