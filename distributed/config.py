"""The configuration that the parts of the service are built from: the sections that they read, checked as one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mneme.controllers import ControllerSettings, PolicySettings, hints_of, settings_class
from mneme.controllers.typed import typed
from mneme.distributed.settings import CurriculumSettings, ServiceSettings, TrainSettings
from mneme.envs import EnvSettings
from mneme.learner import LearnerSettings
from mneme.rollout_workers import RolloutSettings, SpaceSettings


class ConfigError(ValueError):
    """A configuration that cannot run; the message is for the user."""


class ServiceConfig(BaseModel):
    """Everything that decides what is learned."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of everything random in the run."""
    env: EnvSettings = EnvSettings()
    spaces: SpaceSettings = SpaceSettings()
    policy: PolicySettings = PolicySettings()
    rollout: RolloutSettings = RolloutSettings()
    learner: LearnerSettings = LearnerSettings()
    train: TrainSettings = TrainSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    service: ServiceSettings = ServiceSettings()

    @field_validator("*", mode="before")
    @classmethod
    def _is_typed(cls, value: Any, info: ValidationInfo) -> Any:
        """Give a value from YAML the type of its setting in Python, by the same rules and with the same messages."""
        assert info.field_name is not None
        faults: list[str] = []
        value = _typed(info.field_name, value, hints_of(cls)[info.field_name], faults)
        if info.field_name == "policy" and not faults:
            value = _with_its_kind(value, faults)
        if faults:
            raise ValueError("\n".join(faults))
        return value

    def changed(self, section: str, **values: Any) -> Self:
        """This configuration with some settings of one section replaced."""
        return self.model_copy(update={section: dataclasses.replace(getattr(self, section), **values)})


def _typed(key: str, value: Any, hint: Any, faults: list[str]) -> Any:
    """`value` with everything in it of its declared type; what is not is left alone and said in `faults`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        try:
            hints = hints_of(settings_class(value.get("kind", hint.kind)) if hint is ControllerSettings else hint)
        except ValueError as error:
            faults.append(str(error))
            return value
        return {name: _typed(f"{key}.{name}", child, hints.get(name), faults) for name, child in value.items()}
    try:
        return typed(key, value, hint)
    except ValueError as error:
        faults.append(str(error))
        return value


def _with_its_kind(policy: Any, faults: list[str]) -> Any:
    """The policy's settings, where those of the controller are of its kind's class; what that does not have stays
    beside them under its name, for pydantic to find."""
    given = policy.get("controller") if isinstance(policy, Mapping) else None
    if not isinstance(given, Mapping):
        return policy
    kind = settings_class(given.get("kind", ControllerSettings.kind))
    known = hints_of(kind)
    try:
        controller = kind(**{name: value for name, value in given.items() if name in known})
    except ValueError as error:
        faults.append(str(error))
        return policy
    unknown = {f"controller.{name}": value for name, value in given.items() if name not in known}
    return {**policy, "controller": controller, **unknown}
