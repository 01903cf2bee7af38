"""Several teachers: `[[distill.teachers]]` beside `[teacher]`, and how a stage that learns from them gets hold of them.

An objective that knows several (`mtard`) is given them in the order of its `teacher_roles`; in front of any other they are mixed.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import Network, load_network
from kdpipe.stages.classes import InOrder, columns_of, first_names
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare, mixed
from kdpipe.stages.objectives.objective import Objective
from kdpipe.stages.stage import Inputs
from kdpipe.stages.teacher import TeacherConfig

Role = Literal["robust", "natural"]


class FurtherTeacher(TeacherConfig, extra="forbid", frozen=True):
    """`[[distill.teachers]]`: a teacher beside `[teacher]`, trained here or given, by the same keys; classes of given weights are matched by name."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=40,
        description="lower-case letters, digits and '-'; it is the step teacher-NAME, and its random draws are named after it",
    )
    role: Role | None = Field(None, description="what it is to an objective that knows several teachers (mtard); [teacher] takes the other role")
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="in the mixture, beside [distill.mixture] teacher_weight; where learned: at the start")

    def training(self) -> TeacherConfig:
        """What makes the teacher: a change of its role or weight trains nothing anew."""
        return TeacherConfig.model_validate({name: getattr(self, name) for name in TeacherConfig.model_fields})

    def share(self) -> TeacherShare:
        """What those need to know who learn from it."""
        return TeacherShare(name=self.name, role=self.role, weight=self.weight)


def step_name(share: TeacherShare | FurtherTeacher) -> str:
    """The step of a further teacher, and its name among a stage's inputs."""
    return f"teacher-{share.name}"


def require_usable(objective: Objective, further: Sequence[TeacherShare], mixture: Mixture | None) -> None:
    """ConfigError where the teachers do not fit the objective or each other."""
    names = [share.name for share in further]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two further teachers are called {twice!r}", at="distill.teachers", do="give each a name of its own")
    if objective.teacher_roles:
        _order(objective, further)
        if mixture is not None:
            problem = f"objective {objective.name!r} knows its teachers apart, they are not mixed"
            raise ConfigError(problem, at="distill.mixture", do="remove [distill.mixture], or choose an objective that knows one teacher: kd, rslad")
    elif objective.uses_teacher and (mixture or Mixture()).teacher_weight == 0 and all(share.weight == 0 for share in further):
        raise ConfigError("the weights of all teachers are 0", at="distill.mixture", do="give one of them a weight above 0")


def teaching(objective: Objective, further: Sequence[TeacherShare], mixture: Mixture | None, inputs: Inputs) -> tuple[Objective, tuple[Network, ...]]:
    """The objective to train with, and its teachers, loaded from `inputs` (`teacher`, `teacher-NAME`); none where it needs none.

    Raises ConfigError where a further teacher's classes cannot be matched with the data's.
    """
    if not objective.uses_teacher:
        return objective, ()
    first = load_network(inputs.artifacts["teacher"])
    teachers = (first, *(_in_order(load_network(inputs.artifacts[step_name(share)]), share, inputs) for share in further))
    if objective.teacher_roles:
        chosen = tuple(teachers[place] for place in _order(objective, further))
        _require_all_classes(objective, chosen, inputs)
        return objective, chosen
    if len(teachers) > 1 or mixture is not None:
        return mixed(objective, mixture or Mixture(), further), teachers
    return objective, teachers


def places(objective: Objective, further: Sequence[TeacherShare]) -> tuple[str, ...]:
    """Where in the file the teachers of `teaching` stand, in its order."""
    if not objective.uses_teacher:
        return ()
    written = ("[teacher]", *(f"[[distill.teachers]] {share.name}" for share in further))
    return tuple(written[place] for place in _order(objective, further)) if objective.teacher_roles else written


def _order(objective: Objective, further: Sequence[TeacherShare]) -> tuple[int, ...]:
    """For each of the objective's roles the teacher that has it: 0 is [teacher], which takes the role that is left."""
    roles = objective.teacher_roles
    needs = f"objective {objective.name!r} needs {len(roles)} teachers, {' and '.join(roles)}"
    given = {share.role: place for place, share in enumerate(further, 1)}
    if len(further) != len(roles) - 1:
        only = "there is only [teacher]" if not further else f"with [teacher] there are {len(further) + 1}"
        advice = f"add [[distill.teachers]] with a name and role = {roles[-1]!r}; [teacher] is then the {roles[0]} one"
        raise ConfigError(f"{needs}; {only}", at="distill.objective", do=advice if not further else "keep one [[distill.teachers]]")
    if set(given) - set(roles) or len(given) != len(further):
        advice = " or ".join(f"role = {role!r}" for role in roles)
        raise ConfigError(f"{needs}; which one {further[0].name!r} is, is not said", at="distill.teachers", do=f"give it {advice}; [teacher] takes the other")
    return tuple(given.get(role, 0) for role in roles)


def _in_order(network: Network, share: TeacherShare, inputs: Inputs) -> Network:
    given, wanted = network.spec.contract.labels, inputs.data.classes
    if given == wanted:
        return network
    columns = columns_of(given, wanted, at=f"[[distill.teachers]] {share.name}")
    return Network(network.spec, InOrder(network.module, columns).eval())


def _require_all_classes(objective: Objective, teachers: Sequence[Network], inputs: Inputs) -> None:
    for network in teachers:
        missing = tuple(label for label in inputs.data.classes if label not in network.spec.contract.labels)
        if missing:
            raise ConfigError(
                f"a teacher of objective {objective.name!r} does not know the classes {first_names(missing)}",
                at="[[distill.teachers]]",
                do="give a teacher that knows all classes of the data, or choose an objective in front of which teachers are mixed: kd, rslad",
            )
