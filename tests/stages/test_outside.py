import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.outside import outside_digests, outside_sets
from kdpipe.stages.score import EvaluateConfig


def npz(path, shape, seed=0):
    generator = np.random.default_rng(seed)
    images, labels = generator.integers(256, size=(120, *shape), dtype=np.uint8), np.arange(120) % 3
    np.savez(path, images=images, labels=labels)
    return path


def test_one_name_is_a_list_of_one_and_none_is_absent():
    assert EvaluateConfig(ood="inverted").outside == ("inverted",)
    assert EvaluateConfig(ood=("inverted", "uniform-noise", "inverted")).outside == ("inverted", "uniform-noise")
    assert EvaluateConfig().model_dump(exclude_none=True).get("ood") is None
    assert EvaluateConfig(ood=()).outside == ()


def test_another_data_set_gives_as_many_of_its_test_samples_as_are_asked(digits, tmp_path):
    npz(tmp_path / "other.npz", (8, 8))
    (noise, other) = outside_sets(("uniform-noise", "other.npz"), digits.validation, np.arange(20), project=tmp_path, seed=0)
    assert (noise.name, len(noise.indices)) == ("uniform-noise", 20)
    assert (other.name, len(other.indices)) == ("other.npz", 20)
    assert other.samples.read(other.indices).shape == (20, 1, 8, 8)
    again = outside_sets(("other.npz",), digits.validation, np.arange(20), project=tmp_path, seed=0)[0]
    assert np.array_equal(other.samples.read(other.indices), again.samples.read(again.indices))


def test_the_digest_follows_the_content(tmp_path):
    npz(tmp_path / "other.npz", (8, 8))
    before = outside_digests(("inverted", "other.npz"), tmp_path)
    assert before["inverted"] == "inverted"
    assert EvaluateConfig(ood=("other.npz",)).content(tmp_path) == {"ood/other.npz": before["other.npz"]}
    npz(tmp_path / "other.npz", (8, 8), seed=1)
    assert outside_digests(("other.npz",), tmp_path)["other.npz"] != before["other.npz"]


@pytest.mark.parametrize(
    ("name", "message", "do"),
    [
        ("wide.npz", "the samples of 'wide.npz' are (1, 9, 9), the model takes (1, 8, 8)", "name data of that shape, or a set that is made: uniform-noise"),
        ("missing", "no data called 'missing': neither a built-in set", "check [task] data; relative paths start at the project's folder"),
        ("own.code:data", "'own.code:data' is code, which ood does not take", "name a built-in set, a file or a folder, or one of uniform-noise"),
    ],
    ids=["shape", "missing", "code"],
)
def test_data_that_does_not_fit_is_refused(digits, tmp_path, name, message, do):
    npz(tmp_path / "wide.npz", (9, 9))
    with pytest.raises(ConfigError) as caught:
        outside_sets((name,), digits.validation, np.arange(20), project=tmp_path, seed=0)
    problem = caught.value.problems[0]
    assert problem.message.startswith(message)
    assert problem.at.startswith("[evaluate] ood")
    assert do in problem.do
