"""`variant = "auto"`: the scheme of a target follows the instruction set of its device, as the device tells it, never that of the machine that builds."""

from dataclasses import dataclass, replace

from kdpipe.pipeline import predict
from kdpipe.pipeline.config import Config, Target
from kdpipe.pipeline.device_records import Seen, record_of, seen_now
from kdpipe.pipeline.variants import loader_table
from kdpipe.targets.devices.local import Local, LocalDevice
from kdpipe.targets.measurements import DeviceFacts


@dataclass(frozen=True)
class VariantChoice:
    """A target whose variant followed its device. `why`: in words, with what the device has or lacks."""

    target: str
    variant: str
    device: str
    why: str

    @property
    def told(self) -> str:
        """`target board: variant vnni, because on device pi: …`."""
        return f"target {self.target}: variant {self.variant}, because on device {self.device}: {self.why}"


def settled(config: Config, seen: dict[str, Seen]) -> tuple[Config, tuple[VariantChoice, ...]]:
    """The configuration with every `auto` decided, and how.

    A device is what it is in `seen`, else what it was when it was last reached, else it is reached now and noted in `seen`.
    Raises UnavailableError where one that nothing is known of is not reached.
    """
    choices: dict[str, VariantChoice] = {}
    targets: dict[str, Target] = {}
    for name, target in config.targets.items():
        targets[name] = target
        if target.auto and target.device is not None:
            choice = _choice(target, target.device, _facts(config, target.device, seen))
            choices[name] = choice
            targets[name] = replace(target, profile=target.profile.of_variant(choice.variant), variant=choice.variant)
    resolved = {**config.resolved, "targets": {name: target.resolved for name, target in targets.items()}}
    return (replace(config, targets=targets, resolved=resolved) if choices else config), tuple(choices.values())


def _choice(target: Target, device: str, facts: DeviceFacts) -> VariantChoice:
    """By the rule of the bundles' loader, so that a file for one device and a bundle for all take the same variant there."""
    profiles = {variant: target.profile.of_variant(variant) for variant in target.profile.variant_names}
    choice = predict.choose(loader_table(target.name, profiles), frozenset(facts.instruction_sets), None)
    return VariantChoice(target.name, choice.name, device, f"{choice.why} ({facts.cpu})")


def _facts(config: Config, name: str, seen: dict[str, Seen]) -> DeviceFacts:
    settings = config.devices[name]
    if isinstance(settings, Local):
        return LocalDevice().facts()
    record = None if name in seen else record_of(config.project, name, settings)
    if record is not None:
        return record.facts
    if name not in seen:
        seen[name] = seen_now(config.project, name, settings)
    return seen[name].facts
