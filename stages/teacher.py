"""The teacher: trained here, plainly or robustly, or taken from given weights. Further teachers (`[[distill.teachers]]`) are made in the same way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, JsonValue, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from torch import nn

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.networks import SPEC_FILE, WEIGHTS_FILE, Network, NetworkSpec, build_network, load_network, load_weights_, save_network
from kdpipe.foundation.randomness import stream
from kdpipe.stages.checkpoint import remove_checkpoints
from kdpipe.stages.classes import InOrder, columns_of, first_names
from kdpipe.stages.history import write_history
from kdpipe.stages.objectives.configured import ObjectiveSection
from kdpipe.stages.objectives.objective import Objective
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import CHECKPOINTS, train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.validation import validate

VERSION = 1
TOOLS = ("torch", "safetensors", "numpy")

_BODY = "body."  # what `Normalized` puts before the names of the factory's own network
_BATCH = 256


class TeacherConfig(ObjectiveSection, TrainingConfig, extra="forbid", frozen=True):
    """`[teacher]`: which network, how it is trained, or where its weights are. The keys of its objective stand beside these."""

    default_objective: ClassVar[str] = "plain"

    network: str | None = Field(None, description="a built-in network's name or package.module:factory; absent: the task's default")
    network_arguments: dict[str, JsonValue] = Field(default_factory=dict, description="arguments of the network's factory")
    weights: str | None = Field(None, description="a .safetensors file for `network`, or a folder with network.json; relative to the project")
    mean: tuple[float, ...] | None = Field(None, description="per channel, what the network's input is shifted by; absent: the training split's")
    std: tuple[float, ...] | None = Field(None, description="per channel, what it is divided by, > 0; absent: the training split's")
    epochs: int = Field(30, ge=0, description="passes over the training split; with `weights` 0 where absent: they are taken as they are")
    name: str | None = Field(None, description="of a further teacher; the pipeline fills it in, and its random draws are named after it")

    @model_validator(mode="before")
    @classmethod
    def _given_weights_are_not_trained(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("weights") is not None and "epochs" not in value:
            return {**value, "epochs": 0}
        return value

    @property
    def label(self) -> str:
        """What the step, its training and its random streams are called."""
        return "teacher" if self.name is None else f"teacher-{self.name}"

    @property
    def at(self) -> str:
        """Where it stands in the file."""
        return "[teacher]" if self.name is None else f"[[distill.teachers]] {self.name}:"

    @field_validator("objective")
    @classmethod
    def _no_teacher_of_its_own(cls, objective: Objective) -> Objective:
        if objective.uses_teacher:
            raise ValueError(f"{objective.name!r} needs a teacher, and this is the teacher; use plain, trades or at")
        return objective

    @field_validator("std")
    @classmethod
    def _divides(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std is not None and min(std, default=1.0) <= 0:
            raise ValueError("every value must be greater than 0")
        return std

    def content(self, project: Path) -> dict[str, str]:
        """Setting to sha256 of the files it names, for the fingerprint; ConfigError where one is missing."""
        if self.weights is None:
            return {}
        return {"weights" if path == project / self.weights else f"weights/{path.name}": sha256_of(path) for path in _weight_files(project / self.weights)}


def run(inputs: Inputs, config: TeacherConfig, context: Context) -> Path:
    """The artifact folder with the trained teacher, or with the given one."""
    network = _given(inputs, config, context) if config.weights is not None else _fresh(inputs, config, context)
    histories = []
    if config.epochs > 0:
        fresh = None if config.weights is not None else lambda: _fresh(inputs, config, context, use="peer").module
        histories.append(train(network, config.objective, None, inputs, config, context, label=config.label, fresh=fresh))
    save_network(network, context.folder)
    write_history(context.folder, *histories)
    remove_checkpoints(context.folder / CHECKPOINTS)
    return context.folder


def _fresh(inputs: Inputs, config: TeacherConfig, context: Context, *, use: str = "init") -> Network:
    return build_network(_spec(inputs, config), stream(context.seed, f"{config.label}/{use}"), at=f"{config.at} network")


def _spec(inputs: Inputs, config: TeacherConfig) -> NetworkSpec:
    spec = inputs.task.network_spec(config.network or inputs.task.default_teacher, config.network_arguments, inputs.data, at=f"{config.at} network")
    changed = {}
    for name, values in (("mean", config.mean), ("std", config.std)):
        if values is None:
            continue
        if len(values) != len(getattr(spec, name)):
            raise ConfigError(
                f"{name} has {len(values)} values, the data has {len(getattr(spec, name))} channels", at=f"{config.at} {name}", do="give one value per channel"
            )
        changed[name] = values
    return spec.model_copy(update=changed)


def _given(inputs: Inputs, config: TeacherConfig, context: Context) -> Network:
    assert config.weights is not None
    path = context.project / config.weights
    _weight_files(path)
    judged: nn.Module | None = None
    if path.is_dir():
        network = load_network(path)
        _require_shape(network.spec, inputs, path)
        if config.name is None or config.epochs > 0:
            _require_same_classes(network.spec, inputs, path)
        else:
            judged = InOrder(network.module, columns_of(network.spec.contract.labels, inputs.data.classes, at=path))
    else:
        network = _fresh(inputs, config, context)
        prefixed = any(name.startswith(_BODY) for name in _tensor_names(path))
        load_weights_(network.module if prefixed else network.module.get_submodule("body"), path)
        network.module.eval()
    _require_finite(network.module, path)
    accuracy = validate(judged or network.module, inputs.data.validation, _BATCH, None, 0, context.seed, config.label).clean_accuracy
    context.progress.say(f"{config.label}: given weights, validation {accuracy:.1%}")
    return network


def _require_finite(module: nn.Module, path: Path) -> None:
    broken = next((name for name, value in module.state_dict().items() if not value.isfinite().all()), None)
    if broken is not None:
        raise ConfigError(f"weights hold NaN or infinity, first in {broken}", at=path, do="give weights of a training that did not diverge")


def _weight_files(path: Path) -> list[Path]:
    """The files that given weights consist of; ConfigError where they are not there or of a kind that is not read."""
    if path.is_dir():
        files = [path / SPEC_FILE, path / WEIGHTS_FILE]
    elif path.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}:
        raise ConfigError(
            f"{path.suffix} files are pickles, which can run any code when read; they are not loaded",
            at=path,
            do="convert once: safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')",
        )
    else:
        files = [path]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ConfigError("no weights here", at=missing[0], do="give a .safetensors file or a folder with network.json and weights.safetensors")
    return files


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise VerificationError(f"weights cannot be read: {error}", at=path, do="copy or build the file again") from error


def _require_shape(spec: NetworkSpec, inputs: Inputs, path: Path) -> None:
    shape = spec.contract.shape
    if shape != inputs.data.shape:
        raise ConfigError(f"the network takes samples of shape {shape}, the data has {inputs.data.shape}", at=path, do="give weights for this data")


def _require_same_classes(spec: NetworkSpec, inputs: Inputs, path: Path) -> None:
    """A network that is scored, exported or trained on must speak of the data's classes, in their order."""
    labels = spec.contract.labels
    if labels != inputs.data.classes:
        problem = f"the network's classes {first_names(labels)} are not the data's {first_names(inputs.data.classes)}"
        raise ConfigError(problem, at=path, do="give weights trained with these classes in this order")
