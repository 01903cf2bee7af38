"""A device that a target computes on must have what computes there: asked before anything is trained for it, and not hours later."""

from collections.abc import Mapping

from kdpipe.pipeline.device_records import Seen
from kdpipe.pipeline.target_sections import Target
from kdpipe.targets.devices.device import runnable_there
from kdpipe.targets.devices.local import LocalDevice


def require_accelerator(target: Target, seen: Mapping[str, Seen]) -> None:
    """UnavailableError where the device named for the target lacks its accelerator's runtime; a target of a CPU, or without a device, asks nothing.

    `seen`: the devices that this plan has reached; this host under a name is asked itself.
    """
    if target.device is None or target.profile.architecture is not None:
        return
    facts = seen[target.device].facts if target.device in seen else LocalDevice().facts().model_copy(update={"name": target.device})
    runnable_there(facts, target.profile.runtimes_on_device, at=f"device {target.device}")
