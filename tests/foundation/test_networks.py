import json

import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError, UnavailableError, VerificationError
from kdpipe.foundation.networks import (
    SPEC_FILE,
    WEIGHTS_FILE,
    InputContract,
    Network,
    NetworkSpec,
    build_network,
    load_network,
    load_spec,
    load_weights_,
    save_network,
)
from kdpipe.foundation.quantization.engine import calibrate_, freeze, plan_of, prepare
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import stream

SPEC = NetworkSpec(
    factory=f"{__name__}:small", arguments={"channels": 4}, contract=InputContract(shape=(1, 6, 6), labels=("a", "b", "c")), mean=(0.2,), std=(0.4,)
)
X = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def small(channels):
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(channels * 16, 3))


def failing():
    raise ValueError("no such thing")


def number():
    return 7


def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    return Pair()


@pytest.fixture
def network():
    made = build_network(SPEC, stream(0, "init"))
    made.module.train()(X)
    made.module.eval()
    return made


def spec(**changed):
    return SPEC.model_copy(update=changed)


def problem_of(raised):
    (problem,) = raised.value.problems
    return problem


def test_the_same_stream_builds_the_same_weights_and_touches_no_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_network(SPEC, stream(seed, "init")).module.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["body.0.weight"], other["body.0.weight"])


def test_normalisation_is_the_first_layer(network):
    assert torch.allclose(network.module(X), network.module.body((X - 0.2) / 0.4), atol=1e-5)
    assert not any("normalize" in name for name in network.module.state_dict())  # rebuilt from mean and std


def test_a_network_is_read_back_bit_for_bit(network, tmp_path):
    loaded = load_network(save_network(network, tmp_path / "net"))
    assert loaded.spec == network.spec == load_spec(tmp_path / "net")
    assert not loaded.module.training
    assert torch.equal(loaded.module(X), network.module(X))


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(activation_signed=True, activation_symmetric=True, weight_bits=8)], ids=["u8-7", "s8-8"])
def test_a_frozen_twin_is_read_back_bit_for_bit(network, tmp_path, scheme):
    twin = prepare(network.module, scheme, batch_norm="live")
    calibrate_(twin, [X])
    frozen = freeze(twin)
    made = Network(network.spec.model_copy(update={"quantization": plan_of(frozen)}), frozen)
    loaded = load_network(save_network(made, tmp_path))
    assert torch.equal(loaded.module(X), frozen(X))
    assert plan_of(loaded.module) == made.spec.quantization


def test_equal_networks_give_equal_files(network, tmp_path):
    for name in ("one", "two"):
        save_network(network, tmp_path / name)
    for file in (SPEC_FILE, WEIGHTS_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("factory", "message", "do"),
    [
        ("nowhere.to.be.found:net", "cannot import 'nowhere.to.be.found'", "check the spelling"),
        (f"{__name__}:smalls", "has no 'smalls'", "did you mean 'small'?"),
        (f"{__name__}:failing", "failed: ValueError: no such thing", "call it with {} yourself and mend it"),
        (f"{__name__}:number", "returned int, not an nn.Module", "return the network"),
        (f"{__name__}:pair", "returns tuple, (2, 3) is needed: (batch, classes)", "return one tensor of logits"),
        ("torch.nn:Flatten", "returns (2, 36), (2, 3) is needed: (batch, classes)", "return one tensor of logits"),
    ],
    ids=["not-importable", "misspelt", "raises", "not-a-module", "two-outputs", "wrong-shape"],
)
def test_a_factory_that_cannot_be_used_is_told(factory, message, do):
    with pytest.raises(ConfigError) as raised:
        build_network(spec(factory=factory, arguments={}), stream(0, "init"), at="[teacher] network")
    problem = problem_of(raised)
    assert message in problem.message
    assert problem.at == "[teacher] network"
    assert do in problem.do


def test_a_network_that_cannot_take_the_data_is_told():
    with pytest.raises(ConfigError) as raised:
        build_network(
            spec(contract=InputContract(shape=(3, 6, 6), labels=("a", "b", "c")), mean=(0.2,) * 3, std=(0.4,) * 3), stream(0, "init"), at="[distill] student"
        )
    problem = problem_of(raised)
    assert "cannot take an input of shape (2, 3, 6, 6): RuntimeError" in problem.message
    assert (problem.at, problem.do) == ("[distill] student", "make it accept the data's shape")


def test_a_folder_without_a_network_is_told(tmp_path):
    with pytest.raises(ConfigError) as raised:
        load_network(tmp_path)
    problem = problem_of(raised)
    assert (problem.message, problem.at) == ("no network here", str(tmp_path / SPEC_FILE))
    assert problem.do == "name a folder with network.json and weights.safetensors"


@pytest.mark.parametrize("content", ["{", '{"factory": 3}', '{"unknown": 1}'], ids=["not-json", "wrong-type", "unknown-key"])
def test_a_damaged_description_is_told(network, tmp_path, content):
    save_network(network, tmp_path)
    (tmp_path / SPEC_FILE).write_text(content)
    with pytest.raises(VerificationError) as raised:
        load_network(tmp_path)
    problem = problem_of(raised)
    assert problem.message.startswith("network description cannot be read: ")
    assert (problem.at, problem.do) == (str(tmp_path / SPEC_FILE), "delete the folder and build again")


def test_damaged_weights_are_told(network, tmp_path):
    save_network(network, tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(VerificationError) as raised:
        load_network(tmp_path)
    problem = problem_of(raised)
    assert problem.message.startswith("weights cannot be read: ")
    assert (problem.at, problem.do) == (str(path), "copy or build the file again")


def test_missing_weights_are_told(network, tmp_path):
    save_network(network, tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(ConfigError) as raised:
        load_network(tmp_path)
    problem = problem_of(raised)
    assert (problem.message, problem.at) == ("no weights here", str(tmp_path / WEIGHTS_FILE))
    assert problem.do == "give the path of a .safetensors file"


def test_weights_of_another_network_are_told_with_the_first_that_differs(network, tmp_path):
    save_network(network, tmp_path)
    other = build_network(spec(arguments={"channels": 5}), stream(0, "init")).module
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError) as raised:
        load_weights_(other, tmp_path / WEIGHTS_FILE)
    problem = problem_of(raised)
    assert problem.message == "weights do not fit the network: body.0.bias is (4,), the network has (5,)"
    assert (problem.at, problem.do) == (str(tmp_path / WEIGHTS_FILE), "name the network that these weights were trained with")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_weights_with_other_names_are_told(network, tmp_path):
    save_network(network, tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_weights_(nn.Linear(2, 2), tmp_path / WEIGHTS_FILE)
    problem = problem_of(raised)
    assert problem.message == "weights do not fit the network: 2 missing (first: bias); 9 not in the network (first: body.0.bias)"
    assert problem.at == str(tmp_path / WEIGHTS_FILE)
    assert problem.do == "name the network that these weights were trained with"


def test_a_disk_that_refuses_is_told_and_leaves_no_half_file(network, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / WEIGHTS_FILE).mkdir()  # a folder in the way: the rename fails
    with pytest.raises(UnavailableError) as raised:
        save_network(network, tmp_path / "net")
    problem = problem_of(raised)
    assert problem.message.startswith("cannot write: ")
    assert problem.at == str(tmp_path / "net" / WEIGHTS_FILE)
    assert problem.do.startswith("free space or choose a writable folder")
    assert [path.name for path in (tmp_path / "net").iterdir()] == [WEIGHTS_FILE]


def test_the_description_is_readable(network, tmp_path):
    save_network(network, tmp_path)
    written = json.loads((tmp_path / SPEC_FILE).read_text())
    assert written["contract"] == {"shape": [1, 6, 6], "low": 0.0, "high": 1.0, "labels": ["a", "b", "c"]}
    assert written["quantization"] is None
