"""What the runtimes themselves say of a file: those of the host load it, those of the device where this machine has one.

Nothing stands in for what is not there: an accelerator that cannot be asked is told with the runtime's own words.
"""

import re
from pathlib import Path

from pydantic import BaseModel, Field

from kdpipe.targets.devices import agent
from kdpipe.targets.lint.finding import LintFinding
from kdpipe.targets.profile import Profile

_NPU = "NPU"


class Answer(BaseModel, extra="forbid", frozen=True):
    """What one runtime says. `loads` None: it could not be asked, `said` has why."""

    asked: str = Field(description="'onnxruntime 1.32.0', 'openvino-npu'")
    loads: bool | None
    said: str

    def __str__(self) -> str:
        return {True: f"{self.asked} {self.said}", False: f"{self.asked} refuses the file: {self.said}", None: f"{self.asked} not asked: {self.said}"}[
            self.loads
        ]


def ask(model: Path, profile: Profile) -> tuple[Answer, ...]:
    """One answer for each runtime of the profile, the host's first, then the device's."""
    names = dict.fromkeys(need.name for need in (*profile.runtimes, *profile.runtimes_on_device))
    return tuple(_asked(name, model) for name in names)


def refusals(answers: tuple[Answer, ...]) -> tuple[LintFinding, ...]:
    """The answers of those that refuse the file, as findings."""
    return tuple(
        LintFinding(node="file", rule="refused", reason=f"{it.asked}: {it.said}", remedy="export it again for this runtime", severity="error")
        for it in answers
        if it.loads is False
    )


def _asked(runtime: str, model: Path) -> Answer:
    if ":" in runtime or runtime not in {**agent.PROVIDERS, **agent.OPENVINO_DEVICES}:
        return Answer(asked=runtime, loads=None, said="a runtime of your own is asked by kdpipe build alone")
    module = agent.module_of(runtime)
    if runtime.startswith("onnxruntime") and model.suffix == ".xml":
        return Answer(asked=runtime, loads=None, said="it reads ONNX, not IR")
    version = agent.installed(module)
    if version is None:
        return Answer(asked=runtime, loads=None, said=f"not installed: python -m pip install {module}")
    told = f"{runtime} {version}"
    try:
        loaded = agent.load(runtime, str(model), 1, "latency")
    except agent.NotThereError as error:
        return Answer(asked=told, loads=None, said=_npu_without_device(model, str(error)) if runtime == "openvino-npu" else str(error))
    except ImportError as error:
        return Answer(asked=told, loads=None, said=f"it cannot be imported: {error}")
    except Exception as error:  # a runtime raises types of its own, without a common base
        return Answer(asked=told, loads=False, said=_shortened(str(error)))
    left = f", but runs {len(loaded.fell_back)} nodes elsewhere: {', '.join(loaded.fell_back[:4])}" if loaded.fell_back else ""
    return Answer(asked=told, loads=True, said=f"loads the file{left}")


def _npu_without_device(model: Path, why: str) -> str:
    """The plug-in's compiler can answer without a device where it is installed; what it says, or why it does not."""
    core = agent.import_openvino().Core()
    try:
        network = core.read_model(str(model))
        supported = core.query_model(network, _NPU)
    except Exception as error:  # openvino raises RuntimeError and types of its native module
        return f"{why}; its plug-in, asked without a device: {_shortened(str(error))}"
    missing = [layer.get_friendly_name() for layer in network.get_ordered_ops() if layer.get_friendly_name() not in supported]
    told = "takes every node" if not missing else f"does not take {len(missing)} nodes: {', '.join(missing[:4])}"
    return f"{why}; its plug-in, asked without a device, {told}"


def _shortened(words: str) -> str:
    """A runtime's message without the places in its own source and the folders of this machine."""
    lines = [line for line in words.splitlines() if line.strip() and not re.match(r"\s*Exception from \S+:\d+:?\s*$", line)]
    text = re.sub(r"Exception from \S+:\d+:\s*", "", " ".join(" ".join(lines).split()))
    return re.sub(r"(?<![\w./])(/[^\s\"':/]+)+/", "", text)[:300]
