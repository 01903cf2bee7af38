"""What users get wrong about robustness, from their side: a project or a command line, exit code 2, and an answer that says what, where, and what to do.

The commands run in this process; no training takes more than an instant.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.foundation.networks import Network, build_network, save_network
from kdpipe.pipeline import cli
from kdpipe.pipeline.config import read_config
from kdpipe.pipeline.stages import load_stages

TOML = """\
[project]
threads = 1
[task]
data = "set.npz"
augment = []
[teacher]
network = "cnn-small"
objective = "plain"
epochs = 1
[distill]
student = "cnn-small"
objective = "rslad"
epochs = 1
[distill.attack]
epsilon = 0.1
steps = 2
[evaluate]
attacks = ["fgsm"]
corruptions = []
epsilon_curve = []
square_queries = 0
masking = false
"""

ATTACK = "[distill.attack]\nepsilon = 0.1\nsteps = 2\n"
GIVEN = 'network = "cnn-small"\nobjective = "plain"\nepochs = 1\n'


@dataclass(frozen=True)
class Told:
    """What a command left: its exit code and what it said on stderr."""

    exit_code: int
    stderr: str

    @property
    def problem(self) -> tuple[str, str, str]:
        """The only problem that was told: message, at, do."""
        found = re.findall(r"^error: (.*)\n  at:  (.*)\n  do:  (.*)$", self.stderr, re.MULTILINE)
        assert len(found) == 1, self.stderr
        return found[0]


@pytest.fixture
def kdpipe(tmp_path, monkeypatch, capfd):
    """Runs a command as a user does from the project's folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Told:
        code = cli.told(lambda: cli.app(args=list(arguments), prog_name="kdpipe", standalone_mode=False), as_json=False, debug=False)
        return Told(code, capfd.readouterr().err)

    return run


def images(n: int) -> np.ndarray:
    """Dark images of class 0 and bright ones of class 1, by turns."""
    noise = np.random.default_rng(0).integers(0, 60, (n, 8, 8), dtype=np.uint8)
    return noise + 180 * (np.arange(n) % 2).astype(np.uint8)[:, None, None]


def written(folder: Path, *changes: tuple[str, str], n: int = 60, **arrays: np.ndarray) -> None:
    text = TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "kdpipe.toml").write_text(text)
    np.savez(folder / "set.npz", **(arrays or {"images": images(n), "labels": np.arange(n) % 2}))


def knowing(folder: Path, *, labels: tuple[str, ...] | None = None, wrong: bool = False) -> None:
    """Weights in `folder/given` that tell dark from bright, or bright from dark (`wrong`); `labels`: their classes' names, else the data's."""
    config = read_config(folder, load_stages())
    data = config.task.load(folder, 0)
    spec = config.task.network_spec("mine:bright", {"sign": -1.0 if wrong else 1.0}, data, at="test")
    if labels is not None:
        spec = spec.model_copy(update={"contract": spec.contract.model_copy(update={"labels": labels})})
    network = build_network(spec, torch.Generator().manual_seed(0), at="test")
    save_network(Network(network.spec, network.module.eval()), folder / "given")


@pytest.fixture
def own_networks(tmp_path, monkeypatch):
    """A module of the user's: a network that tells dark from bright, and one whose values are finite and whose gradient is NaN."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Bright(nn.Module):\n"
        "    def __init__(self, sign):\n"
        "        super().__init__()\n"
        "        self.weight = nn.Parameter(sign * torch.tensor([-1.0, 1.0]))\n"
        "    def forward(self, x):\n"
        "        return x.mean(dim=(1, 2, 3))[:, None] * self.weight\n"
        "class Rooted(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(64, 2)\n"
        "    def forward(self, x):\n"
        "        return self.head((x + (x - x.detach()).square().sqrt()).flatten(1))\n"
        "def bright(sign=1.0):\n"
        "    return Bright(sign)\n"
        "def rooted():\n"
        "    return Rooted()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("epsilon = 0.1", "epsilon = 1.5", 15),
        ("epsilon = 0.1", "epsilon = 0", 15),
        ("epsilon = 0.1", "epsilon = -0.1", 15),
        ("epsilon = 0.1", "epsilon = nan", 15),
        ("[evaluate]", "[evaluate]\nepsilon = 8", 18),
    ],
    ids=["too large", "zero", "negative", "nan", "in 255ths, of the evaluation"],
)
def test_an_epsilon_outside_the_range_is_answered_with_the_range_and_the_line(old, new, line, tmp_path, kdpipe):
    written(tmp_path, (old, new))
    told = kdpipe("plan")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert re.match(r"epsilon = \S+ is not (in \(0, 1\] for linf; 8/255 is 0.0314|in \(0, ∞\)|a finite number)", message), message
    assert at == f"kdpipe.toml:{line}"
    assert "radius" in do or do == "write a finite number"


def test_an_epsilon_outside_the_range_on_the_command_line_names_the_option(tmp_path, own_networks, kdpipe):
    written(tmp_path)
    knowing(tmp_path)
    told = kdpipe("eval", "given", "--epsilon", "8")
    assert told.exit_code == 2
    assert told.problem == ("epsilon = 8 is not in (0, 1] for linf; 8/255 is 0.0314", "--epsilon", "kdpipe eval --help; docs/configuration.md#evaluate")


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_is_not_chosen_all_five_are_judged(severity, tmp_path, kdpipe):
    written(tmp_path, ("corruptions = []", f'corruptions = ["fog-{severity}"]'))
    told = kdpipe("plan")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert message.endswith(f"'fog-{severity}' names a severity: every corruption is judged at all five, 1 (weak) to 5 (strong); write 'fog'")
    assert at == "kdpipe.toml:19"
    assert "names of corruptions" in do


def test_a_corruption_file_of_another_number_of_severities_is_refused(tmp_path, kdpipe):
    written(tmp_path, ("corruptions = []", 'corruptions = "./corrupted"'))
    (tmp_path / "corrupted").mkdir()
    np.save(tmp_path / "corrupted" / "labels.npy", np.zeros(18 * 6, np.uint8))
    np.save(tmp_path / "corrupted" / "fog.npy", np.zeros((18 * 6, 8, 8), np.uint8))
    told = kdpipe("build", "--until", "teacher")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert message == "108 images are not five severities of 108"
    assert at == str(tmp_path / "corrupted" / "fog.npy")
    assert do


def test_data_of_one_class_are_refused(tmp_path, kdpipe):
    written(tmp_path, images=images(60), labels=np.zeros(60, np.int64))
    told = kdpipe("build")
    assert told.exit_code == 2
    assert told.problem == ("1 class found, at least 2 are needed", f"{tmp_path / 'set.npz'}, train", "add samples of another class")


def test_absent_labels_are_asked_for(tmp_path, kdpipe):
    written(tmp_path, images=images(60))
    told = kdpipe("build")
    assert told.exit_code == 2
    assert told.problem == ("there is 'images' and no 'labels'", str(tmp_path / "set.npz"), "store 'labels' as well")


@pytest.mark.parametrize("labels", [("1", "0"), ("dark", "bright")], ids=["in another order", "others"])
def test_a_given_teacher_of_other_classes_is_refused_before_anything_is_trained(labels, tmp_path, own_networks, kdpipe):
    written(tmp_path, (GIVEN, 'weights = "given"\n'))
    knowing(tmp_path, labels=labels)
    told = kdpipe("build", "--until", "distill")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert message == f"the network's classes {', '.join(labels)} are not the data's 0, 1"
    assert at == str(tmp_path / "given")
    assert do == "give weights trained with these classes in this order"
    assert "distill 1/1" not in told.stderr


def test_a_teacher_worse_than_chance_is_refused_unless_it_is_forced(tmp_path, own_networks, kdpipe):
    written(tmp_path, (GIVEN, 'weights = "given"\n'))
    knowing(tmp_path, wrong=True)
    told = kdpipe("build", "--until", "distill")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert message == "the teacher is right in 0.0 % of 6 validation samples (mean of the classes 0.0 %): guessing gets 50.0 %"
    assert at == "[teacher]"
    assert "classes are the data's in the same order" in do
    assert "trust_teacher = true in [distill]" in do
    forced = kdpipe("build", "--until", "distill", "--set", "distill.trust_teacher=true")
    assert forced.exit_code == 0
    assert "not clearly more than a guess (50.0 %)" in forced.stderr


def test_an_attack_whose_gradient_is_not_a_number_stops_the_training_and_says_so(tmp_path, own_networks, kdpipe):
    written(tmp_path, ('student = "cnn-small"', 'student = "mine:rooted"'), ('objective = "rslad"', 'objective = "at"'))
    told = kdpipe("build", "--until", "distill")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert message == "the attack's gradient is NaN at step 1"
    assert at == "the network under attack"
    assert do == "an operation of it has no gradient where it is asked (a root or a norm at 0): add a small constant there, or use a black-box attack"


def test_a_robust_objective_without_an_attack_section_says_which_attack_it_takes(tmp_path, own_networks, kdpipe):
    written(tmp_path, (ATTACK, ""), (GIVEN, 'weights = "given"\n'))
    knowing(tmp_path)
    told = kdpipe("build", "--until", "distill")
    assert told.exit_code == 0
    assert "distill: no epsilon in [distill.attack], the default is used: linf, epsilon 0.03137, 10 steps" in told.stderr


def test_a_network_without_gradients_is_searched_and_its_figures_are_called_upper_bounds(tmp_path, own_networks, kdpipe):
    (tmp_path / "stepped.py").write_text(
        "from mine import Bright\nclass Stepped(Bright):\n    def forward(self, x):\n        return super().forward(x.round().detach())\n"
    )
    written(tmp_path)
    config = read_config(tmp_path, load_stages())
    spec = config.task.network_spec("stepped:Stepped", {"sign": 1.0}, config.task.load(tmp_path, 0), at="test")
    network = build_network(spec, torch.Generator().manual_seed(0), at="test")
    save_network(Network(network.spec, network.module.eval()), tmp_path / "given")
    told = kdpipe("eval", "given", "--attacks", "pgd-5", "--n", "18", "--corruptions", "", "--decision-queries", "20")
    assert told.exit_code == 0
    assert "no gradients: black-box only; figures are upper bounds" in told.stderr


@pytest.mark.parametrize("n", [12, 20], ids=lambda n: f"{n} samples")
def test_a_set_smaller_than_a_batch_is_trained_on_as_one_batch(n, tmp_path, own_networks, kdpipe):
    written(tmp_path, (GIVEN, 'weights = "given"\n'), n=n)
    knowing(tmp_path)
    told = kdpipe("build", "--until", "distill")
    assert told.exit_code == 0, told.stderr
    assert "distill 1/1: loss " in told.stderr


def test_a_batch_size_of_one_is_refused_where_it_is_written(tmp_path, kdpipe):
    written(tmp_path, ("[distill]", "[distill]\nbatch_size = 1"))
    told = kdpipe("plan")
    message, at, do = told.problem
    assert told.exit_code == 2
    assert message == "batch_size = 1 is not in [2, ∞)"
    assert at == "kdpipe.toml:11"
    assert "samples per step" in do
