"""From settings to a vector environment: any registered Gymnasium id, ours or another package's."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.guard import Guard, one_line
from envs.memory_env import whole_number
from envs.settings import EnvSettings
from envs.subprocesses import Subprocesses

VectorEnv = gym.vector.VectorEnv[Any, Any, Any]
Creator = Callable[..., Any]

_GIVEN_ELSEWHERE = ("num_envs", "render_mode", "max_episode_steps")  # parameters that are not the task's own


def make_vector_env(settings: EnvSettings, num_envs: int, render_mode: str | None = None) -> VectorEnv:
    """A vector environment of `num_envs` lanes that resets finished lanes by itself.

    `metadata["autoreset_mode"]` says when: in the same step, as always where it is made of single environments (each
    in a `Guard`), or in the next one, as some tasks' own vector forms do.

    Args:
        settings: which task, and how it is vectorised.
        num_envs: lanes.
        render_mode: such as "rgb_array", for `render()`; unset: nothing is rendered.

    Raises:
        ValueError: the id or a setting is unknown or refused, or the task cannot be loaded or made; the message says
            why, or what is accepted.
    """
    whole_number("num_envs", num_envs, 1)
    package, registered = _find_spec(settings.id)
    spec = replace(
        registered,
        kwargs=registered.kwargs | settings.kwargs | ({} if render_mode is None else {"render_mode": render_mode}),
        max_episode_steps=settings.max_episode_steps or registered.max_episode_steps,
    )
    native = _load(spec, spec.vector_entry_point) if settings.vectorization == "auto" else None
    obstacle = _obstacle(native, spec, settings, render_mode)
    creator = native if obstacle is None else _load(spec, spec.entry_point)
    if creator is None:
        raise ValueError(f"env.id is {settings.id!r}, which has no single form, and {obstacle}; choose another task")
    _check_names(settings, creator)
    if not _renders(creator, render_mode):
        raise ValueError(f"{settings.id} does not render as {render_mode!r}; choose another task, or render nothing")
    try:
        if obstacle is None:
            return gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point")
        single = partial(_make_single, spec, package, settings.max_failures)
        env = (Subprocesses if settings.vectorization == "async" else _in_this_process)(single, num_envs)
    except Exception as error:
        raise ValueError(_refusal(settings, error)) from error
    env.spec = spec
    return env


def _find_spec(id: str) -> tuple[str, EnvSpec]:
    package, _, name = id.rpartition(":")
    if package:
        try:
            importlib.import_module(package)
        except Exception as error:
            raise ValueError(
                f"env.id is {id!r}, but {package!r} cannot be imported: {one_line(error)}; install it, or put "
                f"its folder on PYTHONPATH"
            ) from error
    if name not in gym.registry:
        near = difflib.get_close_matches(name, gym.registry, n=3)
        near = near or [known for known in gym.registry if known.startswith("mneme/")]
        raise ValueError(
            f"env.id is {id!r}, which is not registered; the nearest are {', '.join(near)} "
            f"(write package:Name-v0 for a task of a package that is not imported yet)"
        )
    return package, gym.registry[name]


def _load(spec: EnvSpec, entry_point: Creator | str | None) -> Creator | None:
    if not isinstance(entry_point, str):
        return entry_point
    try:
        return load_env_creator(entry_point)
    except Exception as error:
        raise ValueError(f"env.id is {spec.id!r}, whose code cannot be loaded: {one_line(error)}") from error


def _obstacle(native: Creator | None, spec: EnvSpec, settings: EnvSettings, render_mode: str | None) -> str | None:
    """Why the task's own vector form is not used, or None where it is."""
    if settings.vectorization != "auto":
        return f"env.vectorization is {settings.vectorization}"
    if native is None:
        return "no vector form"
    if getattr(native, "metadata", {}).get("autoreset_mode") not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        return "whose vector form does not say that it resets finished lanes, in the same step or in the next"
    if not _renders(native, render_mode):
        return f"whose vector form does not render as {render_mode!r}"
    if spec.max_episode_steps is not None and not _accepts(native, "max_episode_steps"):
        return "whose vector form does not take max_episode_steps"
    return None


def _renders(creator: Creator, render_mode: str | None) -> bool:
    """False where a class says that it does not; other creators are asked by making."""
    if render_mode is None or not isinstance(creator, type):
        return True
    return render_mode in getattr(creator, "metadata", {}).get("render_modes", [])


def _accepts(creator: Creator, name: str) -> bool:
    parameters = inspect.signature(creator).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check_names(settings: EnvSettings, creator: Creator) -> None:
    accepted = [name for name in inspect.signature(creator).parameters if name not in _GIVEN_ELSEWHERE]
    for name, value in settings.kwargs.items():
        if name in _GIVEN_ELSEWHERE or not _accepts(creator, name):
            raise ValueError(
                f"env.kwargs.{name} is {value!r}, but {settings.id} has no such setting; "
                f"it accepts {', '.join(accepted) or 'none'}"
            )


def _make_single(spec: EnvSpec, package: str, max_failures: int) -> Guard:
    """One guarded environment; `package`, where there is one, registers what the task may make in its turn."""
    if package:
        importlib.import_module(package)
    return Guard(gym.make(spec, disable_env_checker=True), max_failures)


def _in_this_process(single: Callable[[], Guard], num_envs: int) -> VectorEnv:
    return SyncVectorEnv([single] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def _refusal(settings: EnvSettings, error: Exception) -> str:
    told, _, _ = str(error).partition(" was raised from the environment creator")  # what Gymnasium adds
    if any(told.startswith(f"{name} is ") for name in settings.kwargs):
        return f"env.kwargs.{told}"
    return f"{settings.id} refuses env.kwargs {settings.kwargs}: {one_line(error)}"
