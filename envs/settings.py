"""What a user may set about the task."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """The task."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    id: str = "mneme/DelayedCue-v0"
    """Gymnasium id of the task; package:Name-v0 imports that package first."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """The task's own settings, such as cues, horizon and noise for delayed cue."""

    vectorization: Literal["auto", "sync", "async"] = "auto"
    """auto takes the task's own vector form where it has one that resets finished lanes by itself, and otherwise does
    as sync: single environments, stepped one after the other. async gives each single environment a subprocess, which
    pays where a step takes milliseconds."""

    max_episode_steps: int | None = None
    """Truncate episodes after so many steps. Unset: after as many as the task is registered with."""

    success_return: float | None = None
    """An episode succeeds when its return reaches this. Unset: what the task declares."""

    max_failures: int = 5
    """So many failures of one lane in a row, without an episode between them that ended by itself, end the worker;
    fewer only cut the episodes that they happen in. It counts for single environments."""

    def __post_init__(self) -> None:
        for name in ("max_episode_steps", "max_failures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"env.{name} is {value}; it must be at least 1")
        if self.success_return is not None and not math.isfinite(self.success_return):
            raise ValueError(f"env.success_return is {self.success_return}; it must be finite")
