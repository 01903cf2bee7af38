from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.foundation.networks import load_network, save_network
from kdpipe.stages.teacher import TeacherConfig, run

TINY = {"network": "resnet-8", "network_arguments": {"width": 0.25}}


def config(**keys):
    return TeacherConfig.model_validate({**TINY, **keys})


def problem_of(error):
    (problem,) = error.value.problems
    return problem


def test_it_trains_the_network_and_leaves_network_and_history_alone(inputs, context):
    folder = run(inputs, config(epochs=2, objective="trades", attack={"epsilon": 0.1, "steps": 1}), context)
    assert sorted(path.name for path in folder.iterdir()) == ["history.json", "network.json", "weights.safetensors"]
    network = load_network(folder)
    assert network.spec.contract.labels == inputs.data.classes
    assert network.spec.mean == inputs.data.mean


def test_given_weights_of_a_folder_are_taken_as_they_are(inputs, context, tiny, listener):
    teacher = tiny(seed=4)
    save_network(teacher, context.project / "given")
    given = config(weights="given")
    network = load_network(run(inputs, given, context))
    assert all(torch.equal(a, b) for a, b in zip(network.module.state_dict().values(), teacher.module.state_dict().values(), strict=True))
    assert given.epochs == 0
    assert any(line.startswith("teacher: given weights, validation ") for line in listener.said)


@pytest.mark.parametrize("prefix", ["", "body."], ids=["the factory's own names", "kdpipe's names"])
def test_given_weights_of_a_file_are_loaded_into_the_named_network(prefix, inputs, context, tiny):
    state = {name.removeprefix("body."): value.clone() for name, value in tiny(seed=4).module.state_dict().items()}
    save_file({prefix + name: value for name, value in state.items()}, context.project / "given.safetensors")
    network = load_network(run(inputs, config(weights="given.safetensors", mean=[0.1], std=[0.2]), context))
    assert all(torch.equal(value, state[name.removeprefix("body.")]) for name, value in network.module.state_dict().items())
    assert (network.spec.mean, network.spec.std) == ((0.1,), (0.2,))


def test_given_weights_are_trained_on_when_epochs_are_asked_for(inputs, context, tiny):
    save_network(tiny(seed=4), context.project / "given")
    trained = load_network(run(inputs, config(weights="given", epochs=1), context))
    assert not torch.equal(next(iter(trained.module.parameters())), next(iter(tiny(seed=4).module.parameters())))


def test_the_epochs_of_given_weights_survive_a_round_trip():
    assert TeacherConfig.model_validate(config(weights="given").model_dump(mode="json")).epochs == 0
    assert config().epochs > 0


def test_content_is_what_the_files_hold(tmp_path, tiny):
    save_network(tiny(), tmp_path / "given")
    assert config(weights="given").content(tmp_path) == {
        "weights/network.json": sha256_of(tmp_path / "given" / "network.json"),
        "weights/weights.safetensors": sha256_of(tmp_path / "given" / "weights.safetensors"),
    }
    assert config(weights="given/weights.safetensors").content(tmp_path) == {"weights": sha256_of(tmp_path / "given" / "weights.safetensors")}
    assert config().content(tmp_path) == {}


def test_weights_that_are_not_there_are_told_by_path(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(weights="missing.safetensors").content(tmp_path)
    problem = problem_of(caught)
    assert problem.message == "no weights here"
    assert problem.at == str(tmp_path / "missing.safetensors")
    assert problem.do == "give a .safetensors file or a folder with network.json and weights.safetensors"


def test_pickles_are_not_loaded_and_the_way_to_convert_is_told(tmp_path):
    (tmp_path / "teacher.pth").write_bytes(b"pickle")
    with pytest.raises(ConfigError) as caught:
        config(weights="teacher.pth").content(tmp_path)
    problem = problem_of(caught)
    assert problem.message == ".pth files are pickles, which can run any code when read; they are not loaded"
    assert problem.at == str(tmp_path / "teacher.pth")
    assert "torch.load(path, weights_only=True)" in problem.do


def test_weights_of_other_classes_are_refused(inputs, context, tiny):
    teacher = tiny()
    labels = tuple(reversed(inputs.data.classes))
    spec = teacher.spec.model_copy(update={"contract": teacher.spec.contract.model_copy(update={"labels": labels})})
    save_network(type(teacher)(spec, teacher.module), context.project / "given")
    with pytest.raises(ConfigError) as caught:
        run(inputs, config(weights="given"), context)
    problem = problem_of(caught)
    assert problem.message == "the network's classes 9, 8, 7, 6, 5, … are not the data's 0, 1, 2, 3, 4, …"
    assert problem.at == str(context.project / "given")
    assert "in this order" in problem.do


def test_a_further_teacher_draws_by_its_own_name(inputs, context):
    weights = {}
    for name in (None, "a", "b"):
        folder = context.project / str(name)
        folder.mkdir()
        run(inputs, config(epochs=1, name=name), replace(context, folder=folder))
        weights[name] = (folder / "weights.safetensors").read_bytes()
    assert len(set(weights.values())) == 3


def test_given_weights_of_a_further_teacher_may_be_of_other_classes_as_long_as_two_are_shared(inputs, context, tiny, listener):
    teacher = tiny(seed=4)
    for labels, refused in (((*reversed(inputs.data.classes[2:]), "x", "y"), False), ((*"abcdefghi", "0"), True)):
        spec = teacher.spec.model_copy(update={"contract": teacher.spec.contract.model_copy(update={"labels": labels})})
        save_network(type(teacher)(spec, teacher.module), context.project / "given")
        if refused:
            with pytest.raises(ConfigError, match="share fewer than two names"):
                run(inputs, config(weights="given", name="other"), context)
        else:
            run(inputs, config(weights="given", name="other"), context)
            assert load_network(context.folder).spec.contract.labels == labels
            assert listener.said[-1].startswith("teacher-other: given weights, validation ")
            with pytest.raises(ConfigError, match="are not the data's"):
                run(inputs, config(weights="given", name="other", epochs=1), context)


def test_what_is_wrong_with_a_further_teacher_is_told_at_its_place(inputs, context):
    with pytest.raises(ConfigError) as caught:
        run(inputs, config(mean=[0.1, 0.2], epochs=1, name="other"), context)
    assert problem_of(caught).at == "[[distill.teachers]] other: mean"


def test_weights_for_another_shape_are_refused(inputs, context, tiny):
    teacher = tiny()
    spec = teacher.spec.model_copy(update={"contract": teacher.spec.contract.model_copy(update={"shape": (1, 16, 16)})})
    save_network(type(teacher)(spec, teacher.module), context.project / "given")
    with pytest.raises(ConfigError, match=r"the network takes samples of shape \(1, 16, 16\), the data has \(1, 8, 8\)"):
        run(inputs, config(weights="given"), context)


def test_damaged_weights_are_a_failed_verification(inputs, context):
    (context.project / "given.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(VerificationError, match="weights cannot be read"):
        run(inputs, config(weights="given.safetensors"), context)


def test_one_mean_per_channel(inputs, context):
    with pytest.raises(ConfigError) as caught:
        run(inputs, config(mean=[0.1, 0.2, 0.3], epochs=1), context)
    problem = problem_of(caught)
    assert (problem.message, problem.at, problem.do) == ("mean has 3 values, the data has 1 channels", "[teacher] mean", "give one value per channel")


@pytest.mark.parametrize(
    ("keys", "place", "message"),
    [
        ({"objective": "kd"}, "objective", "'kd' needs a teacher, and this is the teacher; use plain, trades or at"),
        ({"std": [0.0]}, "std", "every value must be greater than 0"),
        ({"epochs": -1}, "epochs", "greater than or equal to 0"),
        ({"netwrok": "resnet-8"}, "netwrok", "Extra inputs are not permitted"),
    ],
    ids=["objective", "std", "epochs", "unknown"],
)
def test_keys_that_cannot_be_are_told_at_their_place(keys, place, message):
    with pytest.raises(ValidationError) as caught:
        config(**keys)
    (told,) = caught.value.errors()
    assert told["loc"] == (place,)
    assert message in told["msg"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_given_weights_that_are_not_finite_are_refused(value, inputs, context, tiny):
    network = tiny(seed=1)
    state = network.module.state_dict()
    state["body.linear.bias"][2] = value
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, context.project / "given.safetensors")
    with pytest.raises(ConfigError) as caught:
        run(inputs, config(weights="given.safetensors"), context)
    problem = problem_of(caught)
    assert problem.message == "weights hold NaN or infinity, first in body.linear.bias"
    assert problem.at == str(context.project / "given.safetensors")
    assert problem.do == "give weights of a training that did not diverge"
