import pytest
import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.classes import InOrder, columns_of, known_classes

LOGITS = torch.tensor([[1.0, 5.0, 2.0], [0.5, -1.0, 3.0]])


def in_order(given, wanted):
    return InOrder(nn.Identity(), columns_of(given, wanted, at="given"))


def test_another_order_is_put_right_by_name():
    assert in_order(("c", "a", "b"), ("a", "b", "c"))(LOGITS).tolist() == [[5.0, 2.0, 1.0], [-1.0, 3.0, 0.5]]


def test_classes_that_the_data_lacks_fall_away():
    module = in_order(("c", "a", "b"), ("b", "c"))
    assert module(LOGITS).tolist() == [[2.0, 1.0], [3.0, 0.5]]
    assert known_classes(module, 2).tolist() == [True, True]


def test_a_class_that_it_does_not_know_is_as_unlikely_as_its_least_likely_one():
    module = in_order(("c", "a", "b"), ("a", "new", "c"))
    assert module(LOGITS).tolist() == [[5.0, 1.0, 1.0], [-1.0, -1.0, 0.5]]
    assert known_classes(module, 3).tolist() == [True, False, True]


def test_a_network_of_the_datas_own_classes_knows_them_all():
    assert known_classes(nn.Identity(), 3).tolist() == [True, True, True]


def test_fewer_than_two_common_names_are_refused():
    with pytest.raises(ConfigError) as caught:
        columns_of(("cat", "dog", "cow", "hen", "pig", "fox"), ("0", "cat"), at="[[distill.teachers]] animals")
    (problem,) = caught.value.problems
    assert problem.message == "the teacher's classes cat, dog, cow, hen, pig, … share fewer than two names with the data's 0, cat"
    assert problem.at == "[[distill.teachers]] animals"
    assert problem.do == "give a teacher of these classes; classes are matched by their names, so rename them where only the spelling differs"
