"""What the plug-ins of ONNX Runtime's providers and of OpenVINO's devices share: a file is opened, and can be looked at, in one of several places."""

from abc import ABC, abstractmethod
from pathlib import Path

from kdpipe.targets.explanation import explained
from kdpipe.targets.observed import Opening
from kdpipe.targets.runtimes.runtime import Hint
from kdpipe.targets.runtimes.session import LoadedSession


class Provider(ABC):
    """The plug-in of one place; `runtime`: the name of the runtime there, `do`: what helps where it is not there."""

    distribution: str

    def __init__(self, runtime: str, do: str) -> None:
        self.runtime, self.do = runtime, do

    def open(self, model: Path, *, threads: int, hint: Hint) -> LoadedSession:
        """See `Runtime.open`; the hint has no meaning in ONNX Runtime, threads have none on a GPU or an NPU."""
        opening = self.opening(hint)
        loaded = opening.load(model, threads=threads)
        return LoadedSession(opening.name, model, loaded, lambda _, example: explained(opening, model, example, threads=threads))

    @abstractmethod
    def opening(self, hint: Hint) -> Opening:
        """How files are opened there."""
