"""From settings to a vector environment: any registered Gymnasium id, ours or another package's."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode

from envs.memory_env import whole_number


@dataclass(frozen=True, kw_only=True)
class EnvSettings:
    """The task."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    id: str = "mneme/DelayedCue-v0"
    """Gymnasium id of the task; package:Name-v0 imports that package first."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """The task's own settings, such as cues, horizon and noise for delayed cue."""


def make_vector_env(settings: EnvSettings, num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    """A vector environment of `num_envs` lanes that resets finished lanes in the same step.

    It is the task's own vector form where that declares same-step autoreset; otherwise single environments,
    stepped one after the other.

    Raises:
        ValueError: the id or a setting is unknown or refused; the message says what is accepted.
    """
    whole_number("num_envs", num_envs, 1)
    spec = _find_spec(settings.id)
    native = _load(spec, spec.vector_entry_point)
    if getattr(native, "metadata", {}).get("autoreset_mode") is not AutoresetMode.SAME_STEP:
        native = None
    creator = native or _load(spec, spec.entry_point)
    if creator is None:
        raise ValueError(
            f"env.id is {settings.id!r}, which has no single form, and whose vector form does not reset "
            f"finished lanes in the same step; choose another task"
        )
    _check_names(settings, creator)
    mode: dict[str, Any] = {"vectorization_mode": "vector_entry_point"}
    if native is None:
        mode = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
    try:
        return gym.make_vec(spec, num_envs, **mode, **settings.kwargs)
    except (TypeError, ValueError, ImportError, gym.error.Error) as error:
        if any(str(error).startswith(f"{name} is ") for name in settings.kwargs):
            raise ValueError(f"env.kwargs.{error}") from error
        raise ValueError(f"{settings.id} refuses env.kwargs {settings.kwargs}: {error}") from error


def _find_spec(id: str) -> EnvSpec:
    package, _, name = id.rpartition(":")
    if package:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"env.id is {id!r}, but {package!r} cannot be imported: {error}") from error
    if name not in gym.registry:
        near = difflib.get_close_matches(name, gym.registry, n=3)
        near = near or [known for known in gym.registry if known.startswith("mneme/")]
        raise ValueError(
            f"env.id is {id!r}, which is not registered; the nearest are {', '.join(near)} "
            f"(write package:Name-v0 for a task of a package that is not imported yet)"
        )
    return gym.registry[name]


def _load(spec: EnvSpec, entry_point: Callable[..., Any] | str | None) -> Callable[..., Any] | None:
    if not isinstance(entry_point, str):
        return entry_point
    try:
        return load_env_creator(entry_point)
    except (ImportError, AttributeError, gym.error.Error) as error:
        raise ValueError(f"env.id is {spec.id!r}, whose code cannot be loaded: {error}") from error


def _check_names(settings: EnvSettings, creator: Callable[..., Any]) -> None:
    parameters = inspect.signature(creator).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    accepted = [parameter.name for parameter in parameters if parameter.name not in ("num_envs", "render_mode")]
    for name, value in settings.kwargs.items():
        if name not in accepted:
            raise ValueError(
                f"env.kwargs.{name} is {value!r}, but {settings.id} has no such setting; "
                f"it accepts {', '.join(accepted) or 'none'}"
            )
