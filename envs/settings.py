"""Settings of the task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from mneme.envs.memory_env import whole_number

VectorizationMode = Literal["auto", "sync", "async"]


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """The task."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    id: str = "mneme/DelayedCue-v0"
    """Gymnasium id of the task; package:Name-v0 imports that package first."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """The task's own settings, such as cues, horizon and noise for delayed cue."""

    vectorization_mode: VectorizationMode = "auto"
    """auto takes the task's own vector form where it has one that resets finished lanes by itself, and otherwise does
    as sync: single environments, stepped one after the other. async gives each single environment a subprocess, which
    pays where a step takes milliseconds."""

    max_episode_steps: int | None = None
    """Truncate episodes after so many steps. Unset: after as many as the task is registered with."""

    success_return: float | None = None
    """An episode succeeds when its return reaches this. Unset: what the task declares."""

    metrics: tuple[str, ...] = ()
    """Numbers that the environment says in the info that ends an episode, which are recorded as info/NAME, the mean
    over episodes; outer.inner is a key inside another's."""

    max_failures: int = 5
    """So many failures of one lane in a row, without an episode between them that ended by itself, end the worker;
    fewer only cut the episodes that they happen in. In a vector form, action masks that allow nothing count."""

    def __post_init__(self) -> None:
        """Check every value, as `controllers.Settings` does for other sections; this package must not import it."""
        if not isinstance(self.id, str):
            raise ValueError(f"env.id is {self.id!r}; it must be text")
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(name, str) for name in self.kwargs):
            raise ValueError(f"env.kwargs is {self.kwargs!r}; it must be a mapping whose keys are text")
        if self.vectorization_mode not in get_args(VectorizationMode):
            raise ValueError(f"env.vectorization_mode is {self.vectorization_mode!r}; use 'auto', 'sync' or 'async'")
        metrics: Any = self.metrics
        if not isinstance(metrics, (list, tuple)) or not all(isinstance(name, str) and name for name in metrics):
            raise ValueError(f"env.metrics is {metrics!r}; it must be a list of keys of the info, as in [score]")
        object.__setattr__(self, "metrics", tuple(metrics))
        for name in ("max_episode_steps", "max_failures"):
            if name == "max_failures" or self.max_episode_steps is not None:
                self._set(name, _whole_number(f"env.{name}", getattr(self, name)))
        success = self.success_return
        if success is not None:
            number = isinstance(success, (int, float, np.number)) and not isinstance(success, bool)
            if not (number and math.isfinite(success)):
                raise ValueError(f"env.success_return is {success!r}; it must be finite")
            self._set("success_return", float(success))

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)


def _whole_number(name: str, value: Any) -> int:
    try:
        return whole_number(name, value, 1)
    except TypeError as error:
        raise ValueError(str(error)) from None
