from typing import ClassVar

import pytest
from pydantic import BaseModel, Field, ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.configured import ConfiguredObjective, ObjectiveSection, objective_class, parse_objective
from kdpipe.stages.objectives.kd import Kd
from kdpipe.stages.objectives.rslad import Rslad


class Section(ObjectiveSection):
    default_objective: ClassVar[str] = "kd"
    epochs: int = Field(3, ge=1)


class Holder(BaseModel):
    objective: ConfiguredObjective


def told(values):
    with pytest.raises(ValidationError) as caught:
        Section.model_validate(values)
    return {".".join(map(str, error["loc"])): (error["type"], error["msg"]) for error in caught.value.errors()}


def test_stage_and_objective_keys_stand_side_by_side():
    section = Section.model_validate({"epochs": 2, "objective": "rslad", "robust_share": {"from": 0.5, "to": 1}, "attack": {"epsilon": 0.1}})
    assert section.epochs == 2
    assert isinstance(section.objective, Rslad)
    assert section.objective.attack.epsilon == 0.1
    assert section.objective.robust_share.at(0.5) == 0.75


def test_a_section_without_an_objective_has_its_default():
    assert Section.model_validate({}).objective == Kd()


@pytest.mark.parametrize(
    "values", [{"temperature": 3}, {"objective": "rslad", "attack": {"steps": 3}}, {"objective": "trades", "beta": {"from": 1, "to": 6}}], ids=str
)
def test_what_is_dumped_is_read_back_as_the_same_section(values):
    section = Section.model_validate(values)
    assert Section.model_validate(section.model_dump(mode="json")) == section
    assert Section.model_validate_json(section.model_dump_json()) == section
    holder = Holder(objective=section.objective)
    assert Holder.model_validate(holder.model_dump(mode="json")) == holder


def test_all_mistakes_are_told_at_once_each_at_its_key():
    found = told({"epochs": 0, "tempreature": 4, "temperature": -1, "label_share": 1.5})
    assert found["epochs"] == ("greater_than_equal", "Input should be greater than or equal to 1")
    assert found["tempreature"][0] == "extra_forbidden"
    assert found["temperature"] == ("greater_than", "Input should be greater than 0")
    assert found["label_share"] == ("less_than_equal", "Input should be less than or equal to 1")


def test_mistakes_inside_the_attack_keep_their_whole_path():
    assert told({"objective": "rslad", "attack": {"steps": 0}})["attack.steps"][0] == "greater_than_equal"
    assert "8/255 is 0.0314" in told({"objective": "rslad", "attack": {"epsilon": 8.0}})["attack"][1]


def test_an_attack_for_an_objective_without_one_is_an_unknown_key():
    assert told({"objective": "kd", "attack": {"epsilon": 0.1}})["attack"][0] == "extra_forbidden"


def test_an_unknown_objective_is_answered_with_the_nearest():
    kind, message = told({"objective": "rlsad"})["objective"]
    assert kind == "unknown_objective"
    assert "unknown name 'rlsad'" in message
    assert "did you mean 'rslad'?" in message


def test_an_objective_that_is_no_text_is_refused():
    assert told({"objective": 3})["objective"][0] == "string_type"


def test_what_is_no_objective_is_refused_with_the_class_to_derive_from():
    with pytest.raises(ConfigError) as caught:
        objective_class("json:JSONDecoder", at="kdpipe.toml:3")
    problem = caught.value.problems[0]
    assert problem.message == "'json:JSONDecoder' is not an objective"
    assert problem.at == "kdpipe.toml:3"
    assert "kdpipe.stages.objectives.objective.Objective" in problem.do


def test_parsing_by_hand_tells_every_mistake_and_the_keys():
    with pytest.raises(ConfigError) as caught:
        parse_objective("kd", {"temperature": 0, "heat": 1}, at="kdpipe.toml:7")
    messages = [problem.message for problem in caught.value.problems]
    assert messages == ["temperature: Input should be greater than 0", "heat: Extra inputs are not permitted"]
    assert {problem.at for problem in caught.value.problems} == {"kdpipe.toml:7"}
    assert caught.value.problems[0].do == "keys of kd: weighting, temperature, label_share"
