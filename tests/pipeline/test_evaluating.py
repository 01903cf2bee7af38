"""`kdpipe eval` on networks and files; on a bundle of a real build: tests/endtoend."""

import json
import subprocess

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from sklearn.datasets import load_digits
from torch import nn

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.networks import InputContract, NetworkSpec, build_network, save_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.randomness import stream
from kdpipe.pipeline.evaluating import evaluate
from kdpipe.pipeline.evaluation_basis import Asked
from kdpipe.pipeline.evaluation_table import figures_table, notes
from kdpipe.pipeline.file_attacks import NO_GRADIENTS

CLASSES = tuple("0123456789")
FEW = {"data": "digits", "n": 40, "attacks": ("pgd-5",), "epsilon": 0.1, "corruptions": ()}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A linear network on the digits, trained for a second: its folder and itself."""
    torch.set_num_threads(1)
    spec = NetworkSpec(
        factory="kdpipe.tasks.networks.cnn:cnn",
        arguments={"in_channels": 1, "classes": 10, "image_size": 8, "channels": [8, 8]},
        contract=InputContract(shape=(1, 8, 8), labels=CLASSES),
        mean=(0.3,),
        std=(0.4,),
    )
    made = build_network(spec, stream(0, "test"))
    digits = load_digits()
    x, labels = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32)), torch.from_numpy(digits.target)
    optimizer = torch.optim.Adam(made.module.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made.module(x), labels).backward()
        optimizer.step()
    made.module.eval()
    return save_network(made, tmp_path_factory.mktemp("network")), made.module


@pytest.fixture(scope="module")
def graph(network):
    return to_onnx(network[1], (1, 8, 8), opset=17, static_batch=None)


def contract(low=0.0, high=1.0, labels=CLASSES, **more):
    return {"inputs": [{"name": "input", "shape": ["batch", 1, 8, 8], "type": "float32", "low": low, "high": high, **more}], "labels": list(labels)}


def written(folder, model, **changed):
    folder.mkdir(exist_ok=True)
    (folder / "some.onnx").write_bytes(to_bytes(model))
    (folder / "contract.json").write_text(json.dumps(contract(**changed)))
    return folder / "some.onnx"


@pytest.fixture(scope="module")
def of_file(tmp_path_factory, graph):
    return evaluate(written(tmp_path_factory.mktemp("file"), graph), asked=Asked(**FEW, decision_queries=60))


def test_a_network_and_its_float_file_have_the_same_figures(network, of_file):
    of_network = evaluate(network[0], asked=Asked(**FEW))
    (mine,), (file,) = of_network.scorecards, of_file.scorecards
    assert (of_network.kind, of_file.kind, of_network.gradients) == ("network", "file", "the network's own")
    assert (mine.model, mine.form, file.model, file.form) == ("student", "network", "float", "file")
    assert mine.clean == file.clean
    assert mine.attacks[0].accuracy == file.attacks[0].accuracy  # the same noise, the same function, the same gradient
    assert (file.attacks[0].crafted_on, file.attacks[0].steps, file.attacks[0].accuracy.n) == (("twin",), 5, 40)
    assert of_network.data_digest == of_file.data_digest


def test_a_file_is_attacked_through_its_own_graph_and_searched(of_file):
    (card,) = of_file.scorecards
    assert of_file.gradients.startswith("a differentiable twin of the file's graph")
    assert "100.0 % equal classes on 80 clean and noisy samples" in of_file.gradients
    assert [(attack.name, attack.accuracy.n) for attack in card.attacks] == [("pgd-5", 40), ("square-100", 40), ("rays-60", 40)]
    assert card.robust.value <= min(attack.accuracy.value for attack in card.attacks)
    assert {gap.what for gap in of_file.not_measured} == {"accuracy under corruption", "latency"}
    assert "onnxruntime" in card.runtime


def test_what_is_shown_names_the_budget_the_gradients_and_the_gaps(of_file):
    text = " ".join(str(cell) for column in figures_table(of_file).columns for cell in column.cells)
    assert "pgd-5 (5 steps, crafted on twin)" in text
    assert "no corruptions were asked for" in text
    told = "\n".join(notes(of_file))
    assert "gradients: a differentiable twin" in told
    assert "not measured: latency" in told


def test_the_same_file_that_takes_other_values_in_another_order_has_the_same_figures(tmp_path, graph, of_file):
    """Channels last, values of [-1, 1] normalised by mean and deviation: what the contract says is undone exactly."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    model.graph.input[0].type.tensor_type.shape.CopyFrom(helper.make_tensor_type_proto(1, ["batch", 8, 8, 1]).tensor_type.shape)
    constants = {"half": 0.5, "std": 0.5, "mean": 0.25}
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    before = [
        helper.make_node("Transpose", ["input"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["first", "std"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["signed"]),
        helper.make_node("Mul", ["signed", "half"], ["small"]),
        helper.make_node("Add", ["small", "half"], ["raw"]),
    ]
    for node in model.graph.node:
        node.input[:] = ["raw" if name == "input" else name for name in node.input]
    nodes = [*before, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result = evaluate(written(tmp_path, model, low=-1.0, high=1.0, mean=[0.25], std=[0.5]), asked=Asked(**FEW, decision_queries=0))
    (card,) = result.scorecards
    assert card.clean.value == pytest.approx(of_file.scorecards[0].clean.value, abs=0.2)
    assert card.attacks[0].accuracy.value == pytest.approx(of_file.scorecards[0].attacks[0].accuracy.value, abs=2.6)  # one sample of 40


def test_probabilities_are_read_as_such(tmp_path, graph, of_file):
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    model.graph.output[0].name = "probabilities"
    (card,) = evaluate(written(tmp_path, model), asked=Asked(**FEW, decision_queries=0)).scorecards
    assert card.nll.value == pytest.approx(of_file.scorecards[0].nll.value, rel=1e-3)
    assert card.attacks[0].accuracy.value == pytest.approx(of_file.scorecards[0].attacks[0].accuracy.value, abs=2.6)


def without_twin(graph):
    """An operator that has no differentiable form here, and changes no class: the file must be searched."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("CumSum", ["before", "zero"], ["logits"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), "zero"))
    return model


def test_a_file_without_gradients_is_searched_and_says_so(tmp_path, graph):
    model = without_twin(graph)
    model.graph.node[-1].op_type = "Hardmax"
    del model.graph.node[-1].input[1:]
    del model.graph.initializer[-1]
    result = evaluate(written(tmp_path, model), asked=Asked(**FEW, decision_queries=60))
    assert result.gradients == NO_GRADIENTS
    (card,) = result.scorecards
    assert [attack.name for attack in card.attacks] == ["square-100", "rays-60"]
    gap = next(gap for gap in result.not_measured if gap.what.startswith("pgd-5"))
    assert gap.reason == "the file has no differentiable twin: operators without a differentiable form here: Hardmax (1)"
    checks = {check.name: check.passed for check in card.masking}
    assert checks["a black-box attack finds no more than the others"] is None
    assert checks["the file answers as its twin under attack"] is None


def test_a_surrogate_lends_its_gradients(tmp_path, graph, network):
    model = without_twin(graph)
    model.graph.node[-1].op_type = "Hardmax"
    del model.graph.node[-1].input[1:]
    del model.graph.initializer[-1]
    result = evaluate(written(tmp_path, model), asked=Asked(**FEW, decision_queries=0), surrogates=[network[0]])
    assert result.gradients.startswith("transferred from surrogate ")
    assert result.gradients.endswith("(the file has no differentiable twin: operators without a differentiable form here: Hardmax (1))")
    assert result.scorecards[0].attacks[0].crafted_on == (f"surrogate {network[0].name}",)


def test_a_network_without_gradients_is_searched_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "cutting.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.linear = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n        return self.linear(x.flatten(1)).detach()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = NetworkSpec(factory="cutting:Net", contract=InputContract(shape=(1, 8, 8), labels=CLASSES), mean=(0.3,), std=(0.4,))
    folder = save_network(build_network(spec, stream(0, "cutting")), tmp_path / "network")
    result = evaluate(folder, asked=Asked(**FEW))
    assert result.gradients == NO_GRADIENTS
    (card,) = result.scorecards
    assert (card.form, [attack.name for attack in card.attacks]) == ("network", ["square-100"])
    assert "pgd-5: attacks that follow gradients" in {gap.what for gap in result.not_measured}


def test_an_evaluation_that_was_killed_goes_on_where_it_was(tmp_path, graph, of_file, warm_python):
    path = written(tmp_path, graph)
    arguments = [str(path), "--data", "digits", "--n", "40", "--attacks", "pgd-5", "--epsilon", "0.1", "--corruptions", ""]
    command = [*warm_python, "-c", _KILLED, *arguments, "--resume", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert len(list((tmp_path / "kept").iterdir())) == 1
    result = evaluate(path, asked=Asked(**FEW, decision_queries=60), resume=tmp_path / "kept")
    assert result.scorecards == of_file.scorecards
    assert not (tmp_path / "kept").exists()


_KILLED = """
import os, signal, sys
from kdpipe.robustness.kept_batches import KeptBatches
write = KeptBatches.write
def once(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
KeptBatches.write = once
from kdpipe.pipeline.cli import main
sys.argv = ["kdpipe", "eval", *sys.argv[1:]]
main()
"""


def problem_of(*arguments, **keywords):
    with pytest.raises((ConfigError, VerificationError)) as caught:
        evaluate(*arguments, **keywords)
    return caught.value.problems[0]


def test_without_a_contract_one_is_drafted(tmp_path, graph):
    path = written(tmp_path, graph)
    (tmp_path / "contract.json").unlink()
    problem = problem_of(path, asked=Asked(**FEW))
    assert problem.message.startswith("the file has no contract: an ONNX file does not say what range its input has")
    assert problem.at == str(tmp_path / "contract.json")
    draft = json.loads(problem.do[problem.do.index("{") :])
    assert draft == {"inputs": [{"shape": ["batch", 1, 8, 8], "low": 0.0, "high": 1.0}], "labels": list(CLASSES)}
    (tmp_path / "mine.json").write_text(json.dumps(draft))
    assert evaluate(path, asked=Asked(**{**FEW, "attacks": ()}), contract=tmp_path / "mine.json").scorecards[0].clean.n == 539


def test_sets_of_the_project_are_found_from_any_folder_and_those_of_the_caller_where_the_caller_stands(tmp_path, network, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "sets", elsewhere):
        folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(project / "sets" / "noise.npz", images=noise, labels=np.arange(60) % 3)
    quick = "epsilon_curve = []\nmasking = false\nattacks = []\ncorruptions = []"
    (project / "kdpipe.toml").write_text(f'[task]\ndata = "digits"\n[evaluate]\nood = ["./sets/noise.npz"]\n{quick}\n[targets.cpu]\n')
    monkeypatch.chdir(elsewhere)
    (card,) = evaluate(network[0], asked=Asked(project=project)).scorecards
    assert {figure.name for figure in card.ood} == {"./sets/noise.npz"}
    with pytest.raises(ConfigError) as raised:
        evaluate(network[0], asked=Asked(project=project, corruptions=("./files",)))
    assert str(elsewhere / "files") in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "message", "do"),
    [
        ({"labels": ()}, "the contract cannot be used: labels: ", "for instance {"),
        ({"high": float("nan")}, "the contract cannot be used: inputs.0.high: ", "for instance {"),
        ({"labels": CLASSES[::-1]}, "the model has the data's classes in another order: 9, 8, 7, 6, 5, 4, …; the data: 0, 1, 2, 3, 4, 5, …", "[task] classes"),
        ({"labels": CLASSES[:9]}, "the model's 9 classes are not the data's 10", "data of the same classes"),
        ({"std": [0.0]}, "mean and std need one value > 0 each for 1 channels", "mend the contract"),
    ],
    ids=["no labels", "no range", "another order", "fewer classes", "no deviation"],
)
def test_a_contract_that_does_not_fit_is_told(tmp_path, graph, changed, message, do):
    problem = problem_of(written(tmp_path, graph, **changed), asked=Asked(**FEW))
    assert problem.message.startswith(message)
    assert problem.at is not None
    assert do in problem.do


@pytest.mark.parametrize(
    ("asked", "message", "at"),
    [
        ({"epsilon": 8.0}, "epsilon = 8 is not in (0, 1] for linf; 8/255 is 0.0314", "--epsilon"),
        ({"epsilon": 0.0}, "epsilon = 0.0: Input should be greater than 0", "--epsilon"),
        ({"attacks": ("pdg-20",)}, "attacks = ('pdg-20',): unknown name 'pdg'", "--attacks"),
        ({"norm": "l3"}, "norm = l3: Input should be 'linf' or 'l2'", "--norm"),
        ({"corruptions": ("snowfall",)}, "corruptions = ", "--corruptions"),
    ],
    ids=["epsilon in 255ths", "no epsilon", "misspelt attack", "unknown norm", "unknown corruption"],
)
def test_settings_out_of_range_name_the_option(network, asked, message, at):
    problem = problem_of(network[0], asked=Asked(**{**FEW, **asked}))
    assert message in problem.message
    assert problem.at == at
    assert "kdpipe eval --help" in problem.do


def test_what_cannot_be_judged_is_told(tmp_path, network, graph):
    assert problem_of(tmp_path, asked=Asked(**FEW)).message == "neither a bundle nor a network here"
    assert problem_of(tmp_path / "none.onnx", asked=Asked(**FEW)).message == "no such file or folder"
    (tmp_path / "weights.pt").write_bytes(b"")
    assert problem_of(tmp_path / "weights.pt", asked=Asked(**FEW)).message == "a .pt file cannot be judged"
    problem = problem_of(network[0])
    assert problem.message == "there is no data to judge it on"
    assert "--data" in problem.do
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    assert problem_of(tmp_path / "broken.onnx", asked=Asked(**FEW)).message.startswith("not an ONNX file")


def test_the_report_is_one_page_that_says_what_was_measured_and_what_not(tmp_path, network):
    result = evaluate(network[0], asked=Asked(**{**FEW, "corruptions": ("contrast",)}), report=tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert result.sha256 in page
    assert "pgd-5" in page
    assert "contrast" in page
    assert "kdpipe eval measures quality" in page
