import os
from dataclasses import replace

import pytest
import torch

from kdpipe.stages.known_targets import KnownTargets
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.target_cache import FOLDER, Table, TargetCache, identity_of
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig


@pytest.fixture
def teacher(tiny):
    network = tiny(seed=1)
    passes = []
    network.module.eval().register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    return network, passes


@pytest.fixture
def table(tmp_path, teacher, digits):
    identity = identity_of(teacher[0].module, teacher[0].spec.model_dump(mode="json"), digits.digest, digits.classes)
    return Table(tmp_path / "targets", identity, 10)


@pytest.fixture
def known(teacher, digits, listener, table):
    return lambda kept=table: KnownTargets(teacher[0].module, digits.train, digits.classes, listener, "distill", kept)


ALL = torch.arange(200)


def test_a_second_training_finds_the_table_and_asks_about_its_first_rows_alone(known, teacher, listener, monkeypatch):
    monkeypatch.setattr("kdpipe.stages.known_targets._BATCH", 50)
    first = known()(ALL)
    assert teacher[1] == [50] * 4
    assert listener.said == ["distill: the teacher's logits are kept: 0.0 MB, 0.0 MB with those of other trainings, in .kdpipe/targets"]
    teacher[1].clear()
    again = known()(ALL)
    assert teacher[1] == [50]
    assert torch.equal(first, again)
    assert torch.equal(first, known(None)(ALL))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda content: content[:100], "it cannot be read (SafetensorError)"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "its content is not what was written"),
        (lambda content: b"", "it cannot be read (SafetensorError)"),
    ],
    ids=["cut short", "one bit", "empty"],
)
def test_a_damaged_table_is_told_of_and_made_anew(known, table, listener, harm, told):
    expected = known()(ALL)
    whole = table.path.read_bytes()
    table.path.write_bytes(harm(whole))
    listener.said.clear()
    assert torch.equal(known()(ALL), expected)
    assert listener.said[0] == f"distill: kept logits of the teacher are not used: {told}; they are computed anew"
    assert table.path.read_bytes() == whole


def test_a_table_that_the_teacher_would_not_give_now_is_not_believed(known, table, listener):
    expected = known()(ALL)
    table.write(expected + 1e-3, lambda message: None)
    listener.said.clear()
    assert torch.equal(known()(ALL), expected)
    assert listener.said[0] == "distill: kept logits of the teacher are not used: it gives others now; they are computed anew"


def test_other_weights_data_networks_or_threads_have_another_table(tiny, digits, table, teacher):
    network = teacher[0]
    other = identity_of(tiny(seed=2).module, network.spec.model_dump(mode="json"), digits.digest, digits.classes)
    data = identity_of(network.module, network.spec.model_dump(mode="json"), "0" * 64, digits.classes)
    spec = identity_of(network.module, {"factory": "another:network"}, digits.digest, digits.classes)
    threads = {**table.identity, "threads": 7}
    paths = {replace(table, identity=identity).path for identity in (table.identity, other, data, spec, threads)}
    assert len(paths) == 5


def test_the_tables_unused_longest_make_room_and_a_larger_one_than_all_room_is_not_kept(tmp_path, listener):
    tables = [Table(tmp_path, {"name": name}, 1) for name in "abc"]
    for age, one in enumerate(tables):
        one.write(torch.zeros(10_000, 10), listener.say)  # 0.4 MB each
        os.utime(one.path, ns=(age, age))
        if age == 1:
            assert tables[0].read((10_000, 10), listener.say) is not None  # used: now the newest
    assert [one.path.exists() for one in tables] == [True, False, True]
    large = Table(tmp_path, {"name": "large"}, 1)
    large.write(torch.zeros(30_000, 10), listener.say)
    assert not large.path.exists()
    assert listener.said[-1] == "the teacher's logits (1.2 MB) are more than [distill.cache] may hold (most_mb = 1): not kept"


def test_a_training_comes_to_the_same_bits_with_the_cache_without_it_and_when_it_was_filled_before(tiny, inputs, context, tmp_path, teacher):
    def trained(name, cache):
        network = tiny()
        config = TrainingConfig(epochs=2, batch_size=64)
        history = train(network, Kd(), teacher[0], inputs, config, replace(context, folder=tmp_path / name, target_cache=cache), label="distill")
        return network.module.state_dict(), history

    plain, history = trained("plain", None)
    assert not (tmp_path / FOLDER).exists()
    for name in ("filling", "filled"):
        weights, told = trained(name, TargetCache())
        assert all(torch.equal(value, weights[key]) for key, value in plain.items())
        assert told == history
        assert len(list((tmp_path / FOLDER).glob("*.safetensors"))) == 1


def test_it_is_no_part_of_what_decides_the_student(tiny_distill):
    assert tiny_distill(cache={"most_mb": 5}).identity() == tiny_distill().identity()


@pytest.fixture
def tiny_distill():
    from kdpipe.stages.distill import DistillConfig

    return lambda **keys: DistillConfig.model_validate({"objective": "kd", **keys})
