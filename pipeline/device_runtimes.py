"""A device that measures a target must have a runtime for it, in a version that fits: asked before anything is trained, and not hours later."""

from collections.abc import Mapping

from kdpipe.pipeline.device_records import Seen
from kdpipe.pipeline.target_sections import Target
from kdpipe.targets.devices.device import runnable_there
from kdpipe.targets.devices.local import LocalDevice


def require_runtimes_there(target: Target, seen: Mapping[str, Seen]) -> None:
    """UnavailableError where a device named for the target has none of the runtimes that it would be asked for, or one in another version.

    `seen`: the devices that this plan has reached. This host under a name is not among them: it is asked for accelerators alone, since
    a CPU's runtimes are those in which the file is proven here.
    """
    asked = {name: seen[name].facts for name in (target.device, *target.accuracy_on) if name is not None and name in seen}
    if target.device is not None and target.profile.architecture is None:
        asked.setdefault(target.device, LocalDevice().facts().model_copy(update={"name": target.device}))
    for name, facts in asked.items():
        needs = target.profile.runtimes_on_device if name == target.device else target.profile.runtimes_there(facts.runtimes)
        runnable_there(facts, needs, at=f"device {name}")
