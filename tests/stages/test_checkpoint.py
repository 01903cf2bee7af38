import json

import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import UnavailableError
from kdpipe.stages.checkpoint import Checkpoint, CheckpointFolder, load_optimizer_state_, optimizer_state, remove_checkpoints, state_of, under


def checkpoint(done):
    return Checkpoint(done, {"student/weight": torch.full((2, 2), float(done)), "student/count": torch.tensor(done)}, {"records": [1.5, done]})


@pytest.fixture
def folder(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoint" / "prune" / "step-1", "identity")
    for done in (1, 2, 3):
        folder.write(checkpoint(done))
    return folder


def test_the_newest_is_read_back_as_it_was_written_and_two_are_kept(folder):
    found = folder.newest(pytest.fail)
    assert found.done == 3
    assert found.facts == {"records": [1.5, 3]}
    assert torch.equal(found.tensors["student/weight"], torch.full((2, 2), 3.0))
    assert found.tensors["student/count"].dtype == torch.int64
    assert sorted(path.name for path in folder.folder.iterdir()) == [f"epoch-00000{n}.{kind}" for n in (2, 3) for kind in ("json", "safetensors")]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")], ids=["cut short", "one bit", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(folder, kind, damage):
    damage(folder.folder / f"epoch-000003.{kind}")
    said = []
    assert folder.newest(said.append).done == 2
    assert len(said) == 1
    assert said[0].startswith("checkpoint epoch-000003.json is not used: ")
    assert "going back to the one before it" in said[0]


def test_tensors_without_their_description_do_not_count_and_a_description_without_tensors_is_told(folder):
    said = []
    (folder.folder / "epoch-000003.json").unlink()
    assert folder.newest(said.append).done == 2
    assert said == []
    (folder.folder / "epoch-000002.safetensors").unlink()
    assert folder.newest(said.append) is None
    assert "it cannot be read (FileNotFoundError)" in said[0]


def test_when_all_are_damaged_training_starts_anew(folder):
    for path in folder.folder.glob("*.safetensors"):
        flip(path)
    said = []
    assert folder.newest(said.append) is None
    assert len(said) == 2


def test_facts_changed_by_hand_are_noticed(folder):
    path = folder.folder / "epoch-000003.json"
    content = json.loads(path.read_text())
    content["facts"]["records"] = [9.9]
    path.write_text(json.dumps(content))
    said = []
    assert folder.newest(said.append).done == 2
    assert "its description is damaged" in said[0]


def test_a_checkpoint_of_another_training_is_not_taken(folder):
    said = []
    assert CheckpointFolder(folder.folder, "another").newest(said.append) is None
    assert "it is of another training" in said[0]


def test_nothing_written_is_nothing_found(tmp_path):
    assert CheckpointFolder(tmp_path / "none", "identity").newest(pytest.fail) is None
    remove_checkpoints(tmp_path / "none")


def test_a_disk_that_refuses_is_told_with_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError) as caught:
        CheckpointFolder(tmp_path / "file" / "checkpoint", "identity").write(checkpoint(1))
    assert "cannot write" in caught.value.problems[0].message
    assert str(tmp_path / "file" / "checkpoint") in caught.value.problems[0].at


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)], ids=["sgd", "adamw"])
def test_an_optimiser_goes_on_to_the_same_bits(make):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)

    def step(module, optimizer, seed):
        optimizer.zero_grad()
        x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=torch.channels_last)
        module(x).square().mean().backward()
        optimizer.step()

    whole, first, resumed = network(), network(), network()
    optimizers = [make(module.parameters()) for module in (whole, first, resumed)]
    for seed in range(4):
        step(whole, optimizers[0], seed)
    for seed in range(2):
        step(first, optimizers[1], seed)
    resumed.load_state_dict(under("student", state_of("student", first)))
    load_optimizer_state_(optimizers[2], under("optimizer", optimizer_state("optimizer", optimizers[1])))
    for seed in range(2, 4):
        step(resumed, optimizers[2], seed)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
