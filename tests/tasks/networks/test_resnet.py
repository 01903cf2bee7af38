import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdpipe.foundation.networks import build_network, load_weights_
from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.tasks.data import cifar10
from kdpipe.tasks.data.batches import batches
from kdpipe.tasks.data.samples import RowsSplit
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.image_classification import ImageClassification
from kdpipe.tasks.networks.resnet import PaddedShortcut, resnet


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("depth", "expected"), [(20, 269_722), (56, 853_018)])
def test_with_padded_shortcuts_it_has_the_size_of_the_paper(depth, expected):
    # Table 6 of the paper: 0.27 M and 0.85 M; the digits are those of the pretrained files.
    module = resnet(in_channels=3, classes=10, image_size=32, depth=depth, shortcut="pad")

    assert parameters(module) == expected


def test_shortcuts_by_convolution_cost_their_weights_and_norms():
    padded, convolved = (resnet(in_channels=3, classes=10, image_size=32, shortcut=shortcut) for shortcut in ("pad", "conv"))

    assert parameters(convolved) - parameters(padded) == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


def test_width_multiplies_the_channels():
    module = resnet(in_channels=1, classes=10, image_size=28, depth=8, width=2)

    assert module.linear.in_features == 128
    assert parameters(module) == pytest.approx(4 * parameters(resnet(in_channels=1, classes=10, image_size=28, depth=8)), rel=0.02)


@pytest.mark.parametrize(("image_size", "side"), [(8, 2), (28, 7), (32, 8), (64, 8), (128, 8)])
def test_large_images_are_halved_early(image_size, side):
    module = resnet(in_channels=1, classes=10, image_size=image_size, depth=8).eval()
    seen = []
    module.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))

    module(torch.zeros(1, 1, image_size, image_size))

    assert seen == [(1, 64, side, side)]


def test_a_padded_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = torch.arange(32.0).reshape(1, 2, 4, 4) + 1

    y = PaddedShortcut(2, 4, 2)(x)

    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert (y[:, [0, 3]] == 0).all()


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"depth = 18 is not of the form 6n \+ 2"):
        resnet(in_channels=3, classes=10, image_size=32, depth=18)


@pytest.mark.parametrize("depth", [20, 56])
def test_names_are_those_of_the_pretrained_files(depth, shared_data):
    own = resnet(in_channels=3, classes=10, image_size=32, depth=depth, shortcut="pad").state_dict()
    theirs = load_file(shared_data / "pretrained" / f"cifar10-resnet{depth}.safetensors")

    assert {name: value.shape for name, value in own.items() if not name.endswith("num_batches_tracked")} == {
        name: value.shape for name, value in theirs.items()
    }


@pytest.fixture
def cifar10_test(shared_data):
    """CIFAR-10 with 1,000 of its test images as every split, and the statistics that the pretrained networks were trained with."""
    source = cifar10.load(shared_data, name="cifar10")
    rows = numpy_stream(0, "subset").permutation(10_000)[:1000]
    split = RowsSplit(source.test.samples, rows, source.test.labels[rows])
    return DataSplits("cifar10", source.classes, source.test.samples.shape, split, split, split, "", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_pretrained_resnet_20_is_as_good_as_it_is_known_to_be(cifar10_test, shared_data):
    spec = ImageClassification(data="cifar10").network_spec("resnet-20", {"shortcut": "pad"}, cifar10_test, at="[teacher]")
    module = build_network(spec, stream(0, "init")).module
    load_weights_(module, shared_data / "pretrained" / "cifar10-resnet20.safetensors")
    module.eval()

    with torch.no_grad():
        correct = sum(int((module(batch.x).argmax(1) == batch.labels).sum()) for batch in batches(cifar10_test.test, 250))

    assert 780 < correct < 840  # 81.0 % of all 10,000; 2.4 standard deviations of a sample of 1,000


@pytest.mark.parametrize("inner", [False, True], ids=["with normalisation", "without"])
def test_bare_weights_load_with_and_without_the_normalisation_in_front(inner, tmp_path):
    task = ImageClassification(data="digits")
    data = task.load(tmp_path, 0)
    theirs = resnet(in_channels=1, classes=10, image_size=8, depth=8)
    save_file({name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}, tmp_path / "theirs.safetensors")
    own = build_network(task.network_spec("resnet-8", {}, data, at="x"), stream(0, "init")).module

    load_weights_(own.get_submodule("body") if inner else own, tmp_path / "theirs.safetensors")

    assert torch.equal(own.get_submodule("body").conv1.weight, theirs.conv1.weight)
    assert torch.equal(own.get_submodule("body").linear.bias, theirs.linear.bias)


def test_weights_of_another_network_are_refused(tmp_path, problem):
    task = ImageClassification(data="digits")
    data = task.load(tmp_path, 0)
    path = tmp_path / "theirs.safetensors"
    save_file(resnet(in_channels=1, classes=10, image_size=8, depth=14).state_dict(), path)
    own = build_network(task.network_spec("resnet-8", {}, data, at="x"), stream(0, "init")).module

    told = problem(lambda: load_weights_(own, path))

    assert "weights do not fit the network: 36 not in the network (first: body.layer1.1.bn1.bias)" in told.message
    assert told.at == str(path)
    assert told.do == "name the network that these weights were trained with"


def test_every_convolution_is_followed_by_its_norm():
    module = resnet(in_channels=3, classes=10, image_size=32, depth=8)
    convolutions = [name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)]
    norms = [name for name, child in module.named_modules() if isinstance(child, nn.BatchNorm2d)]

    assert len(convolutions) == len(norms) == 9
