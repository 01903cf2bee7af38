"""Will int8 be faster than float? What is known before anything is trained: the chip's instructions, the scheme, and what networks of this size gained.

The measured points are `int8_gains.toml`, written by `benchmarks/int8_by_size.py` on an x86 CPU with VNNI. Where nothing was measured the
expectation says so, and gives no figure.
"""

import functools
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from kdpipe.targets.profile import Profile

GAINS_FILE = Path(__file__).with_name("int8_gains.toml")

Outlook = Literal["faster", "a little faster", "not faster", "not known"]

FASTER = 1 / 1.3
"""int8 time over float time up to which int8 counts as faster: 1.3 times as fast"""

EQUAL = 0.95
"""from here on the difference is lost in a machine's noise"""

WITHOUT_VNNI = 1.3
"""What the ratio grows by on x86 without an int8 dot product, at most: 0.37 → 0.47 for a ResNet, 0.63 → 0.70 for a MobileNetV2 in ONNX Runtime, measured
on a machine with VNNI and with its runtimes restricted to AVX2."""

_MEGA = 1e6


class Point(BaseModel, extra="forbid", frozen=True):
    """A network that was measured: int8 time over float time by runtime, batch 1, one thread."""

    network: str
    macs: int = Field(gt=0)
    depthwise: bool
    onnxruntime: float = Field(gt=0)
    openvino: float = Field(gt=0)


@dataclass(frozen=True)
class Cost:
    """The network that will run: multiply-accumulates of one sample, and whether any convolution is depthwise. `note`: what the count leaves out."""

    macs: int
    depthwise: bool
    note: str = ""


@dataclass(frozen=True)
class Chip:
    """Where the target will run. `name`: `this host`, `device pi`; `instruction_sets` None: no machine is named, only the profile's class of chips is known."""

    name: str
    instruction_sets: frozenset[str] | None
    no_latency: str | None = None


@dataclass(frozen=True)
class Expectation:
    """What is expected of a target's int8 file beside its float file. `ratios`: int8 time over float time, by runtime, where a figure is known."""

    target: str
    chip: str
    outlook: Outlook
    ratios: dict[str, float]
    reasons: tuple[str, ...]

    @property
    def told(self) -> str:
        """One line: `cpu on this host: int8 is expected to be a little faster than float (…): …`."""
        verdict = _VERDICTS.get(self.outlook, f"int8 is expected to be {self.outlook} than float")
        figures = ", ".join(f"{runtime} about {ratio:.2f}" for runtime, ratio in self.ratios.items())
        return f"{self.target} on {self.chip}: {verdict}{f' ({figures} of its time)' if figures else ''}: {'; '.join(self.reasons)}"


def expected(target: str, profile: Profile, chip: Chip, cost: Cost | None) -> Expectation:
    """The expectation for the profile's int8 file on the chip; `cost` None: the network is not known."""
    reasons: list[str] = []
    outlook: Outlook = "faster"
    for bound, reason in _rules(profile, chip):
        reasons.append(reason)
        outlook = max(outlook, bound, key=_ORDER.index)
    figures_are_known = _figures_are_known(profile, chip) and outlook in ("faster", "a little faster")
    ratios: dict[str, float] = {}
    if cost is not None and outlook != "not known":
        gains = _gains(profile, chip, cost)
        by_size = outlook_of(gains.values())
        reasons.append(_size_told(cost, by_size, measured_elsewhere=profile.architecture == "aarch64"))
        outlook = max(outlook, by_size, key=_ORDER.index)
        ratios = gains if figures_are_known else {}
    if chip.no_latency is not None:
        reasons.append("latency is not measured there")
    return Expectation(target, chip.name, outlook, ratios, tuple(reasons))


def outlook_of(ratios: Iterable[float]) -> Outlook:
    """What int8 time over float time in several runtimes comes to: by the one that gains least."""
    worst = max(ratios, default=0.0)
    return "faster" if worst <= FASTER else "a little faster" if worst < EQUAL else "not faster"


_VERDICTS = {"not known": "whether int8 will be faster is not known", "not faster": "int8 is not expected to be faster than float"}
_ORDER: tuple[Outlook, ...] = ("faster", "a little faster", "not faster", "not known")


@functools.cache
def measured_points() -> tuple[Point, ...]:
    """The networks of `int8_gains.toml`."""
    return tuple(Point.model_validate(entry) for entry in tomllib.loads(GAINS_FILE.read_text(encoding="utf-8"))["points"])


def _rules(profile: Profile, chip: Chip) -> list[tuple[Outlook, str]]:
    """What the scheme and the chip say by themselves."""
    scheme = profile.chosen_scheme
    if profile.architecture is None:
        return [("not known", f"{profile.accelerator} decides, and it is not here to be asked")]
    if not scheme.quantizes_activations:
        return [("not faster", "the scheme makes the file smaller: its layers compute in float")]
    rules: list[tuple[Outlook, str]] = []
    sets = chip.instruction_sets
    if sets is not None and profile.architecture not in sets:
        return [("not known", f"the target is {profile.architecture}, {chip.name} is not")]
    fast = profile.instruction_sets.fast_on
    if not fast:
        rules.append(("not faster", "chips of this class have no int8 dot product: int8 values are widened to 16 bits first"))
    elif sets is None and set(fast).isdisjoint(profile.needed_sets):
        rules.append(("not known", f"no device is named: with {' or '.join(fast)} it would be, without it would not"))
    elif sets is not None and sets.isdisjoint(fast):
        if profile.architecture == "aarch64":
            rules.append(("not faster", f"{chip.name} has no int8 dot product ({' or '.join(fast)}): int8 values are widened to 16 bits first"))
        else:
            rules.append(("a little faster", f"{chip.name} has no int8 dot product ({' or '.join(fast)}): two instructions do what one does there"))
    else:
        able = sorted(set(fast) & (sets if sets is not None else set(profile.needed_sets)))
        rules.append(("faster", f"{chip.name if sets is not None else 'its class of chips'} has an int8 dot product ({', '.join(able)})"))
    if profile.architecture == "x86-64" and scheme.activation_signed:
        rules.append(("not faster", "signed activations leave most convolutions unfused in ONNX Runtime on x86 (0.8 to 2.3 of float's time were measured)"))
    return rules


def _figures_are_known(profile: Profile, chip: Chip) -> bool:
    """Of x86 CPUs and the u8 scheme alone, where they will be measured too."""
    return profile.architecture == "x86-64" and not profile.chosen_scheme.activation_signed and chip.no_latency is None


def _gains(profile: Profile, chip: Chip, cost: Cost) -> dict[str, float]:
    """int8 time over float time by runtime of the profile: between the two measured networks of its kind that are nearest in size, beyond the ends the last."""
    points = sorted((point for point in measured_points() if point.depthwise == cost.depthwise), key=lambda point: point.macs)
    below = [point for point in points if point.macs <= cost.macs]
    above = [point for point in points if point.macs >= cost.macs]
    low, high = (below or above[:1])[-1], (above or below[-1:])[0]
    share = 0.0 if low.macs == high.macs else math.log(cost.macs / low.macs) / math.log(high.macs / low.macs)
    runtimes = [need.name for need in profile.runtimes if need.name in ("onnxruntime", "openvino")]
    gains = {runtime: (1 - share) * getattr(low, runtime) + share * getattr(high, runtime) for runtime in runtimes}
    lacks_vnni = profile.architecture == "x86-64" and chip.instruction_sets is not None and chip.instruction_sets.isdisjoint(profile.instruction_sets.fast_on)
    return {runtime: min(ratio * WITHOUT_VNNI, max(ratio, 1.0)) for runtime, ratio in gains.items()} if lacks_vnni else gains


def _size_told(cost: Cost, outlook: Outlook, *, measured_elsewhere: bool) -> str:
    kind = "depthwise" if cost.depthwise else "dense"
    size = f"{cost.macs / _MEGA:.2g} M multiply-accumulates{cost.note} in {kind} convolutions"
    where = " (measured on x86)" if measured_elsewhere else ""
    if outlook == "faster":
        return f"{size} are enough work to gain{where}"
    return f"the network is small: {size}; most of a single inference is then overhead{where}"
