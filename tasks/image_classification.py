"""Image classification: one label for each image, grey or RGB, all of one size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, JsonValue, model_validator
from torch import Tensor

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import InputContract, NetworkSpec
from kdpipe.tasks.augment import Augmentation, Crop, Flip, overlaps
from kdpipe.tasks.data import cifar10
from kdpipe.tasks.data.checks import Layout, require_precision
from kdpipe.tasks.data.cifar10n import LabelSet, human_labels
from kdpipe.tasks.data.cleaning import cleaned_splits
from kdpipe.tasks.data.find import DATA_VARIABLE, found
from kdpipe.tasks.data.label_noise import LabelNoise, LabelSource
from kdpipe.tasks.data.partition import Drawn, Shares, drawn, partitioned
from kdpipe.tasks.data.source import Source
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.networks.named import DEFAULT_STUDENT, DEFAULT_TEACHER, NamedNetwork, default_networks, named_network

_CACHE = Path(".kdpipe", "data")
_OWN_AUGMENTATIONS: dict[str, tuple[Augmentation, ...]] = {
    "digits": (),  # a shift by one of 8 pixels cost 4 points under attack: docs/decisions/digits-augmentation.md
    "fashion-mnist": (Flip(), Crop()),
    "cifar10": (Flip(), Crop()),
}
_OTHER_AUGMENTATIONS: tuple[Augmentation, ...] = (Crop(),)  # no flip: mirrored digits, letters or organs are others


class ImageClassification(BaseModel, extra="forbid", frozen=True, serialize_by_alias=True):
    """`[task]` with `kind = "image-classification"`."""

    kind: Literal["image-classification"] = "image-classification"
    data: str = Field(min_length=1, description="digits, fashion-mnist, cifar10, a file, a folder, or package.module:callable")
    path: Path | None = Field(None, description="where the files of fashion-mnist or cifar10 lie; else the environment's KDPIPE_DATA")
    classes: tuple[str, ...] | None = Field(None, min_length=2, description="the classes' names by label; else the data's own")
    layout: Layout | None = Field(None, description="order of an image array's axes, where its shape leaves it open")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="of each class's training samples, where the data has no validation set")
    test_share: float | None = Field(None, gt=0, lt=0.5, description="the same for the test set; else 0.3 below 5,000 samples, 0.2 above")
    train_samples: int | None = Field(None, ge=2, description="only so many of the training split, the same share of each class, by seed; else all")
    label_noise: LabelNoise | None = Field(None, description="wrong labels made on purpose, a section of its own; else the labels as they are")
    labels: LabelSet | None = Field(None, description="of cifar10: the human labels of CIFAR-10N for training; else CIFAR-10's own")
    clean_validation: bool = Field(False, description="with one of these: the validation split keeps the data's own labels")
    cleaned: Path | None = Field(None, description="a manifest that kdpipe data clean wrote: what is left out or relabelled; else the data as they are")
    augment_with: tuple[Augmentation, ...] | None = Field(
        None,
        alias="augment",
        description="flip, crop, noise, blur, cutout, randaugment, augmix: how training images are varied; "
        "else crop, with flip for fashion-mnist and cifar10, none for digits",
    )
    interval_half_width: float | None = Field(None, gt=0, le=50, description="percentage points: the test split must be large enough for it at 95 %")

    @model_validator(mode="after")
    def _other_labels_fit(self) -> Self:
        if self.labels is not None and self.data != cifar10.NAME:
            raise ValueError(f'labels = "{self.labels}" are CIFAR-10N\'s and go with data = "{cifar10.NAME}", not with {self.data!r}')
        if self.labels is not None and self.label_noise is not None:
            raise ValueError("labels and label_noise are two sources of wrong labels: give one of them")
        if self.clean_validation and self.labels is None and self.label_noise is None:
            raise ValueError("clean_validation goes with label_noise or labels")
        return self

    @property
    def default_teacher(self) -> str:
        """A name that `network_spec` resolves by the image's size."""
        return DEFAULT_TEACHER

    @property
    def default_student(self) -> str:
        """A name that `network_spec` resolves by the image's size."""
        return DEFAULT_STUDENT

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The augmentations in their order, the default resolved."""
        if self.augment_with is not None:
            return self.augment_with
        return _OWN_AUGMENTATIONS.get(self.data, _OTHER_AUGMENTATIONS)

    @property
    def trained_corruptions(self) -> tuple[str, ...]:
        """The evaluation's corruptions that the augmentations train for: robustness to them is not to the unseen."""
        return tuple(dict.fromkeys(corruption for step in self.augmentations for corruption in overlaps(step)))

    def load(self, project: Path, seed: int) -> DataSplits:
        """The data, checked and split; see `Task.load`."""
        manifest = None if self.cleaned is None else project / self.cleaned
        source = self._source(project, lenient=manifest is not None)
        if isinstance(source, DataSplits):
            self._require_nothing_to_draw()
            data = source if manifest is None else cleaned_splits(source, manifest)
            require_precision(len(data.test), self.interval_half_width, at=f'data = "{self.data}"')
            return data
        shares = Shares(self.validation_share, self.test_share)
        return partitioned(
            source,
            shares,
            seed,
            half_width=self.interval_half_width,
            cache=project / _CACHE,
            train_samples=self.train_samples,
            noise=self._label_source(source),
            clean_validation=self.clean_validation,
            cleaned=manifest,
        )

    def uncleaned(self, project: Path, seed: int) -> Drawn | DataSplits:
        """What `load` would give without `cleaned`, before single images are checked; of a user's own splits these. For `kdpipe data`."""
        source = self._source(project, lenient=True)
        if isinstance(source, DataSplits):
            return source
        shares, noise = Shares(self.validation_share, self.test_share), self._label_source(source)
        return drawn(source, shares, seed, train_samples=self.train_samples, noise=noise, clean_validation=self.clean_validation)

    def _label_source(self, source: Source) -> LabelSource | None:
        if self.labels is not None:
            return human_labels(self.labels, source.train, beside=Path(source.train.at).parent, variable=DATA_VARIABLE)
        return self.label_noise

    def _require_nothing_to_draw(self) -> None:
        at = f'data = "{self.data}"'
        if self.train_samples is not None:
            raise ConfigError(f"train_samples = {self.train_samples} cannot be drawn from splits of your own", at=at, do="let the function return fewer")
        if self.label_noise is not None:
            raise ConfigError("label_noise cannot be put into splits of your own", at=at, do="let the function return (images, labels), or wrong labels")

    def _source(self, project: Path, *, lenient: bool) -> Source | DataSplits:
        return found(self.data, path=self.path, project=project, classes=self.classes, layout=self.layout, lenient=lenient)

    def identity(self) -> Mapping[str, Any]:
        """Kind and augmentations; splits and class names are part of the data's digest."""
        return {"kind": self.kind, "augment": [step.model_dump() for step in self.augmentations]}

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The batch varied by each augmentation in turn."""
        for step in self.augmentations:
            x = step(x, generator)
        return x

    def network_spec(self, name: str, arguments: Mapping[str, JsonValue], data: DataSplits, *, at: str) -> NetworkSpec:
        """The description of the network called `name`; built-in factories also get `in_channels`, `classes` and `image_size`."""
        channels, *sides = data.shape
        named = _resolved(name, data, at=at)
        known: dict[str, JsonValue] = {} if ":" in name else {"in_channels": channels, "classes": len(data.classes), "image_size": min(sides)}
        return NetworkSpec(
            factory=named.factory,
            arguments={**known, **named.arguments, **arguments},
            contract=InputContract(shape=data.shape, labels=data.classes),
            mean=data.mean,
            std=data.std,
        )


def _resolved(name: str, data: DataSplits, *, at: str) -> NamedNetwork:
    if ":" in name:
        return NamedNetwork(name)
    teacher, student = default_networks(data.shape)
    return named_network({DEFAULT_TEACHER: teacher, DEFAULT_STUDENT: student}.get(name, name), at=at)


plugin = ImageClassification
