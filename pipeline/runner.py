"""Running a plan: each step that the store does not hold, in order, under its lock, and nothing twice.

A step's inputs are verified byte for byte before it takes them; what turns out damaged is set aside, said so, and built
again. After a crash the same plan goes on where it stopped: finished steps are kept, an unfinished training finds its checkpoint.
"""

import errno
import importlib.metadata
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdpipe.foundation.allocator import keep_freed_memory, release_freed_memory
from kdpipe.foundation.errors import KdpipeError, UnavailableError, VerificationError
from kdpipe.pipeline.planning import Plan, PlannedStep
from kdpipe.pipeline.progress import duration
from kdpipe.pipeline.stages import StageModule
from kdpipe.pipeline.steps import StepResult
from kdpipe.pipeline.store import Artifact, Store
from kdpipe.stages.stage import Context, Inputs, Progress
from kdpipe.targets.devices.agent import peak_memory_bytes

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
_FULL_BELOW_BYTES = 1 << 20


def run_plan(plan: Plan, stages: Mapping[str, StageModule], store: Store, progress: Progress) -> dict[str, StepResult]:
    """The results of all steps by name, in order. Raises what a stage raises; finished steps stay in the store whatever happens."""
    run = _Run(plan, stages, store, progress)
    with torch_settings(plan.threads):
        try:
            for planned in plan.steps:
                run.result(planned)
        except BaseException:
            run.say_what_is_kept()
            raise
    return {planned.step.name: run.results[planned.step.name] for planned in plan.steps}


def kept_results(plan: Plan, store: Store) -> dict[str, StepResult]:
    """The results of a plan in which nothing is to run; VerificationError where an artifact has gone or is damaged."""
    results = {}
    for planned in plan.steps:
        damage = store.damage(planned.step.fingerprint, thorough=True)
        artifact = store.find(planned.step.fingerprint) if damage is None else None
        if artifact is None:
            raise VerificationError(damage or "the artifact is gone", at=store.folder / planned.step.fingerprint, do="run kdpipe build")
        results[planned.step.name] = kept_result(planned, artifact)
    return results


def kept_result(planned: PlannedStep, artifact: Artifact) -> StepResult:
    """The result of a step that the store held."""
    return StepResult(planned.step, artifact.folder, "kept", artifact.record.seconds, artifact.record.peak_memory_bytes)


class _Run:
    """One pass over a plan. `results`: by step name, as far as it is; `current`: the step that runs."""

    def __init__(self, plan: Plan, stages: Mapping[str, StageModule], store: Store, progress: Progress) -> None:
        self.plan = plan
        self.stages = stages
        self.store = store
        self.progress = progress
        self.results: dict[str, StepResult] = {}
        self.current: str | None = None
        self._by_name = {planned.step.name: planned for planned in plan.steps}
        self._consumed: set[str] = set()

    def result(self, planned: PlannedStep, *, consumed: bool = False) -> StepResult:
        """The step's result, built if need be. `consumed`: another step is about to read it, so every digest is checked (once)."""
        name = planned.step.name
        if name in self.results and (not consumed or name in self._consumed):
            return self.results[name]
        artifact = self._sound(planned, thorough=consumed)
        if artifact is not None:
            self.results.setdefault(name, kept_result(planned, artifact))
        else:
            self.results[name] = self._built(planned)
        if consumed:
            self._consumed.add(name)
        return self.results[name]

    def say_what_is_kept(self) -> None:
        """On the way out of a build that did not end: what need not be done again."""
        built = [name for name, result in self.results.items() if result.state == "built"]
        kept = f"finished steps are kept ({', '.join(built)})" if built else "finished steps are kept"
        self.progress.say(f"stopped{f' in {self.current}' if self.current else ''}; {kept}: the same command goes on from here")

    def _sound(self, planned: PlannedStep, *, thorough: bool) -> Artifact | None:
        """The undamaged artifact in the store, or None; a damaged one is set aside."""
        fingerprint = planned.step.fingerprint
        damage = self.store.damage(fingerprint, thorough=thorough)
        if damage is None:
            return self.store.find(fingerprint)
        with self.store.lock(fingerprint, lambda: self._say_waiting(planned)):
            damage = self.store.damage(fingerprint, thorough=thorough)
            if damage is not None:  # else another build has mended it meanwhile
                aside = self.store.set_aside(fingerprint)
                self.progress.say(f"{planned.step.name}: {damage}; set aside to {_shown(aside, self.plan.config.project)}, building it again")
        return self.store.find(fingerprint)

    def _built(self, planned: PlannedStep) -> StepResult:
        step = planned.step
        inputs = {name: self.result(self._by_name[needed], consumed=True).folder for name, needed in step.needs.items()}
        with self.store.lock(step.fingerprint, lambda: self._say_waiting(planned)):
            artifact = self.store.find(step.fingerprint)
            if artifact is not None:  # another build finished it while we waited
                self.progress.say(f"{step.name}: kept, another build has just finished it")
                return kept_result(planned, artifact)
            self.current = step.name
            artifact = self._run_stage(planned, inputs)
            self.current = None
        self.progress.say(f"{step.name}: built in {duration(artifact.record.seconds)}")
        return StepResult(step, artifact.folder, "built", artifact.record.seconds, artifact.record.peak_memory_bytes)

    def _run_stage(self, planned: PlannedStep, inputs: Mapping[str, Path]) -> Artifact:
        step, config = planned.step, self.plan.config
        folder = self.store.work(step.fingerprint)
        context = Context(folder, config.project, config.seed, self.plan.threads, self.progress, getattr(config.sections["distill"], "cache", None))
        artifacts = {**inputs, "subject": next(iter(inputs.values()))} if step.stage == "score" else dict(inputs)
        profile = planned.target.profile if planned.target else None
        self.progress.say(f"{step.name}: {'; '.join(planned.why) or 'its artifact is gone'}")
        release_freed_memory()
        _reset_peak_memory()
        begin = time.monotonic()
        with _told_resources(step.name, folder):
            self.stages[step.stage].run(Inputs(artifacts, self.plan.data, config.task, profile), planned.config, context)
        seconds = time.monotonic() - begin
        return self.store.commit(step, seconds=seconds, peak_memory_bytes=peak_memory_bytes(), kdpipe=importlib.metadata.version("kdpipe"))

    def _say_waiting(self, planned: PlannedStep) -> None:
        self.progress.say(f"{planned.step.name}: another build of this project is at it, waiting for it to finish")


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Threads and determinism for a build, put back afterwards: an algorithm that is not deterministic is refused, not run."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic  # a module that is an object: its switch has no type
    fill = switches.fill_uninitialized_memory
    torch.set_num_threads(threads)
    keep_freed_memory()  # stays so for the process: glibc has no way back
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False  # costs a pass over every new tensor, and no operator here reads one before it is written
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        switches.fill_uninitialized_memory = fill


@contextmanager
def _told_resources(step: str, folder: Path) -> Iterator[None]:
    """What the machine refuses (disk, memory) as an UnavailableError, whatever library met it."""
    try:
        yield
    except KdpipeError:
        raise
    except Exception as error:
        refused = _refusal(error, folder)
        if refused is None:
            raise
        raise UnavailableError(
            f"{step} stopped: {refused}", at=folder, do="free what is missing, then run the same command again: finished steps are kept"
        ) from error


def _refusal(error: Exception, folder: Path) -> str | None:
    """In words, what resource was missing; None where the error is of another kind."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"cannot write: {error.strerror or error}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    if shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:  # libraries in C++ tell a full disk in many ways
        return f"the disk is full ({type(error).__name__}: {error})"
    return None


def _reset_peak_memory() -> None:
    """Start counting anew, where the system can (Linux); else the peak is that of the whole process so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _shown(path: Path, project: Path) -> str:
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else str(path)
