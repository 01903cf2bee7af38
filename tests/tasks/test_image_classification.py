import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdpipe.foundation.networks import build_network
from kdpipe.foundation.plugins import find
from kdpipe.foundation.randomness import stream
from kdpipe.tasks.augment import Blur, Crop, Flip, Noise
from kdpipe.tasks.image_classification import ImageClassification
from kdpipe.tasks.task import Task


def task(**settings):
    return ImageClassification(**{"data": "digits", **settings})


@pytest.fixture
def digits(tmp_path):
    return task().load(tmp_path, 0)


def test_it_is_found_by_its_kind_and_is_a_task():
    model = find("kdpipe.tasks", "image-classification", at="[task] kind")
    own: Task = model(data="digits")

    assert isinstance(own, ImageClassification)


def test_the_digits_are_split_as_documented(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1079, 179, 539)
    assert digits.shape == (1, 8, 8)
    assert digits.mean == pytest.approx((0.305,), abs=0.005)


def test_one_seed_gives_one_data_set_wherever_the_project_is(digits, tmp_path):
    (tmp_path / "other").mkdir()

    assert task().load(tmp_path / "other", 0).digest == digits.digest
    assert task().load(tmp_path, 1).digest != digits.digest
    assert task(test_share=0.2).load(tmp_path, 0).digest != digits.digest


def test_an_interval_that_the_test_split_cannot_give_is_refused(tmp_path, problem):
    told = problem(lambda: task(interval_half_width=1).load(tmp_path, 0))

    assert told.message == "the test split has 539 samples; an interval of ±1 points needs 9604"
    assert told.at == 'data = "digits"'
    assert "interval_half_width to 4.3" in told.do


OWN_SPLITS = """
from pathlib import Path
from kdpipe.tasks.image_classification import ImageClassification

def own():
    return ImageClassification(data="digits").load(Path("."), 0)
"""


def test_splits_of_the_users_own_are_held_to_the_interval_as_well(tmp_path, monkeypatch, problem):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "user_splits.py").write_text(OWN_SPLITS)

    assert task(data="user_splits:own", interval_half_width=5).load(tmp_path, 0).name == "digits"
    told = problem(lambda: task(data="user_splits:own", interval_half_width=1).load(tmp_path, 0))

    assert "an interval of ±1 points needs 9604" in told.message
    assert told.at == 'data = "user_splits:own"'
    assert told.do


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data": "digits"}, ()),
        ({"data": "cifar10"}, (Flip(), Crop())),
        ({"data": "images"}, (Crop(),)),
        ({"augment": []}, ()),
        ({"augment": ["flip", {"name": "blur", "sigma": 0.5}]}, (Flip(), Blur(sigma=0.5))),
    ],
    ids=["digits", "cifar10", "a folder", "none", "given"],
)
def test_augmentations_are_those_given_or_the_datas(settings, expected):
    assert task(**settings).augmentations == expected


def test_augmentations_are_applied_in_their_order():
    own = task(augment=[{"name": "noise", "std": 0.5}, "blur"])
    x = torch.rand(4, 1, 8, 8, generator=stream(0, "x"))

    generator = stream(0, "augment")
    expected = Blur()(Noise(std=0.5)(x, generator), generator)

    assert torch.equal(own.augment(x, stream(0, "augment")), expected)


def test_corruptions_that_are_trained_for_are_told():
    assert task().trained_corruptions == ()
    assert {"gaussian-noise", "shot-noise", "gaussian-blur", "defocus-blur"} <= set(task(augment=["noise", "blur", "flip"]).trained_corruptions)
    assert task(augment=["flip", "augmix"]).trained_corruptions == ()


def test_identity_holds_what_changes_a_training_and_no_path():
    here, there = (task(data=data, augment=["flip"]) for data in ("/here/images", "/there/images"))

    assert here.identity() == there.identity() == {"kind": "image-classification", "augment": [{"name": "flip"}]}
    assert task(augment=["flip", "crop"]).identity() != here.identity()


def test_the_default_augmentation_and_the_same_given_are_one_identity():
    assert task(data="cifar10").identity() == task(data="cifar10", augment=["flip", "crop"]).identity()


def test_settings_are_written_by_their_keys():
    own = task(augment=["flip"], path=None)

    assert own.model_dump(mode="json")["augment"] == [{"name": "flip"}]
    assert ImageClassification.model_validate(own.model_dump(mode="json")) == own


@pytest.mark.parametrize(
    "settings",
    [{"dat": "digits"}, {"validation_share": 0.6}, {"test_share": 0}, {"classes": ["one"]}, {"layout": "CHWN"}, {"data": ""}, {"augment": ["rotate"]}],
    ids=["misspelt", "share too large", "share 0", "one class", "layout", "no data", "unknown augmentation"],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        task(**settings)


@pytest.mark.parametrize("name", ["default-teacher", "default-student", "resnet-8-x2", "mobilenetv2-0.25", "cnn-small"])
def test_named_networks_fit_the_data(digits, name):
    spec = task().network_spec(name, {}, digits, at="[teacher] network")

    network = build_network(spec, stream(0, "init"))

    assert spec.contract.labels == digits.classes
    assert (spec.mean, spec.std) == (digits.mean, digits.std)
    assert network.module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_default_names_become_those_that_fit_the_images_size(digits):
    own = task()

    teacher, student = (own.network_spec(name, {}, digits, at="x") for name in (own.default_teacher, own.default_student))

    assert (teacher.arguments["depth"], student.arguments["depth"]) == (20, 8)


def test_arguments_of_the_configuration_win_over_the_names(digits):
    spec = task().network_spec("resnet-20", {"width": 0.5, "shortcut": "pad"}, digits, at="x")

    assert (spec.arguments["depth"], spec.arguments["width"], spec.arguments["shortcut"]) == (20, 0.5, "pad")


FACTORIES = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, classes, scale=1):
        super().__init__()
        self.linear = nn.Linear(64, classes)
    def forward(self, x):
        return self.linear(x.flatten(1))

def mine(classes, scale=1):
    return Linear(classes)

def raises(classes):
    raise RuntimeError("out of luck")

def images_back(classes):
    return nn.Identity()

def two(classes):
    class Two(Linear):
        def forward(self, x):
            return x, x
    return Two(classes)

def wrong_input(classes):
    return nn.Linear(63, classes)

def nothing(classes):
    return None
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "user_factories.py").write_text(FACTORIES)


def test_a_users_factory_gets_the_arguments_of_the_configuration_and_no_others(digits, factories):
    spec = task().network_spec("user_factories:mine", {"classes": 10, "scale": 3}, digits, at="x")

    assert spec.arguments == {"classes": 10, "scale": 3}
    assert build_network(spec, stream(0, "init")).module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:mine", "cannot import 'no_such_module'"),
        ("user_factories:mien", "module 'user_factories' has no 'mien'"),
        ("user_factories:raises", "the factory 'user_factories:raises' failed: RuntimeError: out of luck"),
        ("user_factories:images_back", "the network 'user_factories:images_back' returns (2, 1, 8, 8), (2, 10) is needed: (batch, classes)"),
        ("user_factories:two", "the network 'user_factories:two' returns tuple, (2, 10) is needed"),
        ("user_factories:wrong_input", "the network 'user_factories:wrong_input' cannot take an input of shape (2, 1, 8, 8)"),
        ("user_factories:nothing", "the factory 'user_factories:nothing' returned NoneType, not an nn.Module"),
    ],
    ids=["not importable", "misspelt", "raises", "wrong shape", "two outputs", "wrong input", "no module"],
)
def test_a_factory_that_cannot_be_used_is_told(digits, factories, factory, message, problem):
    spec = task().network_spec(factory, {"classes": 10}, digits, at="kdpipe.toml:12")

    told = problem(lambda: build_network(spec, stream(0, "init"), at="kdpipe.toml:12"))

    assert message in told.message
    assert told.at == "kdpipe.toml:12"
    assert told.do


def test_an_argument_that_a_built_in_network_does_not_know_is_told(digits, problem):
    spec = task().network_spec("resnet-8", {"wide": 2}, digits, at="kdpipe.toml:12")

    told = problem(lambda: build_network(spec, stream(0, "init"), at="kdpipe.toml:12"))

    assert "unexpected keyword argument 'wide'" in told.message
    assert told.at == "kdpipe.toml:12"
    assert told.do


def test_a_folder_of_images_is_read_in_batches_without_being_held(class_folders, tmp_path):
    class_folders("animals", {"ant": 12, "cat": 12})

    data = task(data="animals").load(tmp_path, 0)

    x = data.train.read(np.arange(4))
    assert data.classes == ("ant", "cat")
    assert x.shape == (4, 3, 12, 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 8)
