"""From settings to a vector environment: any registered Gymnasium id, ours or another package's."""

import difflib
import errno
import importlib
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mneme.envs.callables import HERE, Unseen, found_in
from mneme.envs.enclosed import Enclosed, VectorEnv
from mneme.envs.global_random import GlobalStreams, seed_process
from mneme.envs.guard import Guard, one_line
from mneme.envs.memory_env import MemoryVectorEnv, whole_number
from mneme.envs.place import Place, resolved, speaks_of_lanes
from mneme.envs.plain import Creator, accepts, made_plain
from mneme.envs.registered import (
    Registered,
    check_sendable,
    in_any_process,
    register_missing,
    registered_here,
    why_left_out,
)
from mneme.envs.resumable import Resumable
from mneme.envs.settings import EnvSettings
from mneme.envs.subprocesses import Subprocesses
from mneme.envs.vector_guard import VectorGuard

_OF_GYMNASIUM = ("num_envs", "render_mode", "max_episode_steps")  # which Gymnasium gives to a vector form
_SETTINGS = {"num_envs": "rollout.num_envs", "max_episode_steps": "env.max_episode_steps"}


def make_vector_env(
    settings: EnvSettings, num_envs: int, render_mode: str | None = None, place: Place | None = None
) -> VectorEnv:
    """A vector environment of `num_envs` lanes that resets finished lanes by itself.

    `metadata["autoreset_mode"]` says when: in the same step, as always where it is made of single environments (each
    in a `Guard`), or in the next one, as some tasks' own vector forms do.

    Args:
        settings: which task, and how it is vectorised.
        num_envs: lanes.
        render_mode: such as "rgb_array", for `render()`; unset: nothing is rendered.
        place: where the lanes stand among all, for settings that speak of it; unset: they are the first.

    Raises:
        ValueError: the id or a setting is unknown or refused, or the task cannot be loaded or made; the message says
            why, or what is accepted.
    """
    whole_number("num_envs", num_envs, 1)
    place = place or Place()
    package, registered = _find_spec(settings.id)
    spec = replace(
        registered,
        kwargs=registered.kwargs | settings.kwargs | ({} if render_mode is None else {"render_mode": render_mode}),
        max_episode_steps=settings.max_episode_steps or registered.max_episode_steps,
    )
    native = _load(spec, spec.vector_entry_point) if settings.vectorization_mode == "auto" else None
    obstacle = _obstacle(native, spec, settings, render_mode)
    creator = native if obstacle is None else _load(spec, spec.entry_point)
    if creator is None:
        raise ValueError(f"env.id is {settings.id!r}, which has no single form, and {obstacle}; choose another task")
    resolved(settings.kwargs, place.first_lane, place.worker)  # or refused, before it is taken for the task's refusal
    _check_names(settings, creator, _OF_GYMNASIUM if obstacle is None else ())
    if not _renders(creator, render_mode):
        raise ValueError(f"{settings.id} does not render as {render_mode!r}; choose another task, or render nothing")
    alone = settings.vectorization_mode == "async"
    if alone:
        check_sendable(settings.id)
    try:
        if obstacle is None:
            kwargs = resolved(spec.kwargs, place.first_lane, place.worker)
            return _native(replace(spec, kwargs=kwargs), num_envs, place, settings)
        known = registered_here() if alone else {}
        lanes = [_Single(spec, package, settings, place, place.first_lane + i, known) for i in range(num_envs)]
        seed = (*place.seed, place.first_lane)
        if alone:
            with GlobalStreams(seed):  # one is made in this process, to look at
                return Subprocesses(lanes, spec)
        return Enclosed(lambda: _in_this_process(lanes, spec), settings.id, seed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(_refusal(settings, error)) from error


def _find_spec(id: str) -> tuple[str, EnvSpec]:
    package, _, name = id.rpartition(":")
    if package:
        try:
            importlib.import_module(package)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise ValueError(
                f"env.id is {id!r}, but {package!r} cannot be imported: {one_line(error)}; install it, or put "
                f"its folder on PYTHONPATH"
            ) from error
    if name not in gym.registry:
        if package and (spec := found_in(package, name)):
            return package, spec
        if why := why_left_out(name):
            raise _cannot_load(name, why)
        if name.startswith(HERE):
            raise ValueError(
                f"env.id is {id!r}, which only the process that made it can make; put what makes the environment into "
                f"a module of its own, for others to import"
            )
        near = difflib.get_close_matches(name, gym.registry, n=3)
        near = near or [known for known in gym.registry if known.startswith("mneme/")]
        raise ValueError(
            f"env.id is {id!r}, which is not registered; the nearest are {', '.join(near)} "
            f"(write package:Name-v0 for a task of a package that is not imported yet)"
        )
    spec = gym.registry[name]
    try:
        return package, in_any_process(spec)
    except Exception as error:
        raise _cannot_load(spec.id, one_line(error)) from error


def _load(spec: EnvSpec, entry_point: Creator | str | None) -> Creator | None:
    if not isinstance(entry_point, str):
        return entry_point
    try:
        return load_env_creator(entry_point)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _cannot_load(spec.id, one_line(error)) from error


def _cannot_load(id: str, why: str) -> ValueError:
    return ValueError(f"env.id is {id!r}, whose code cannot be loaded: {why}")


def _obstacle(native: Creator | None, spec: EnvSpec, settings: EnvSettings, render_mode: str | None) -> str | None:
    """Why the task's own vector form is not used, or None where it is."""
    if settings.vectorization_mode != "auto":
        return f"env.vectorization_mode is {settings.vectorization_mode}"
    if native is None:
        return "no vector form"
    if speaks_of_lanes(settings.kwargs):
        return "whose vector form takes one env.kwargs for all lanes"
    for name in settings.kwargs.keys() & set(_OF_GYMNASIUM):
        single = _load(spec, spec.entry_point)
        if single is not None and name in inspect.signature(single).parameters:
            return f"whose vector form is given {name} by Gymnasium"
    if not isinstance(native, Unseen) and not _resets_itself(native):
        return "whose vector form does not say that it resets finished lanes, in the same step or in the next"
    if not _renders(native, render_mode):
        return f"whose vector form does not render as {render_mode!r}"
    if spec.max_episode_steps is not None and not accepts(native, "max_episode_steps"):
        return "whose vector form does not take max_episode_steps"
    return None


def _resets_itself(made: Any) -> bool:
    modes = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
    return (getattr(made, "metadata", None) or {}).get("autoreset_mode") in modes


def _renders(creator: Creator, render_mode: str | None) -> bool:
    """False where a class says that it does not; other creators are asked by making."""
    if render_mode is None or not isinstance(creator, type):
        return True
    return render_mode in ((getattr(creator, "metadata", None) or {}).get("render_modes") or [])


def _check_names(settings: EnvSettings, creator: Creator, taken: Sequence[str]) -> None:
    """Refuse what the creator does not take, and what is `taken`, as it is given by others."""
    accepted = [name for name in inspect.signature(creator).parameters if name not in taken]
    for name, value in settings.kwargs.items():
        if name in taken or not accepts(creator, name):
            remedy = f"; {_SETTINGS[name]} is the setting for it" if name in _SETTINGS else ""
            raise ValueError(
                f"env.kwargs.{name} is {value!r}, but {settings.id} has no such setting; "
                f"it accepts {', '.join(accepted) or 'none'}{remedy}"
            )


@dataclass(frozen=True)
class _Single:
    """Makes the guarded environment of one lane, here or in a subprocess."""

    spec: EnvSpec
    package: str  # where there is one, it is imported first
    settings: EnvSettings
    place: Place
    lane: int  # among all
    registered: Registered  # what the task may make in its turn; empty where it stays in this process
    home: int = field(default_factory=os.getpid)

    def __call__(self) -> Guard:
        alone = os.getpid() != self.home
        if alone:
            seed_process((*self.place.seed, self.lane))
            register_missing(self.registered)
        if self.package:
            importlib.import_module(self.package)
        kwargs = resolved(self.spec.kwargs, self.lane, self.place.worker)
        creator = _load(self.spec, self.spec.entry_point)
        assert creator is not None
        plain = replace(self.spec, entry_point=partial(made_plain, creator), kwargs=kwargs)
        env: gym.Env[Any, Any] = gym.make(plain, disable_env_checker=True)
        env.unwrapped.spec = replace(plain, entry_point=self.spec.entry_point)
        return Guard(env, self.settings.max_failures, alone, self.settings.id)


def _in_this_process(lanes: Sequence[_Single], spec: EnvSpec) -> VectorEnv:
    made: list[Guard] = []
    try:
        made.extend(single() for single in lanes)
        env = SyncVectorEnv([partial(_itself, guard) for guard in made], autoreset_mode=AutoresetMode.SAME_STEP)
    except BaseException:
        for guard in made:
            guard.close()
        raise
    env.spec = spec
    return env


def _itself(guard: Guard) -> Guard:
    return guard


def _native(spec: EnvSpec, num_envs: int, place: Place, settings: EnvSettings) -> VectorEnv:
    """The task's own vector form; Mneme's draw from nothing that is the process's."""
    env = Enclosed(
        lambda: gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point"),
        settings.id,
        (*place.seed, place.first_lane),
    )
    if not _resets_itself(env) or env.num_envs != num_envs:
        found = env.num_envs
        env.close()
        raise ValueError(
            f"it was asked for {num_envs} environments that reset by themselves, and made {found}; let what makes it "
            f"take num_envs at its word, with autoreset_mode SAME_STEP or NEXT_STEP"
        )
    made = env.env  # a wrapper that somebody has put around a task of ours does something too
    return made if isinstance(made, MemoryVectorEnv) else VectorGuard(env, settings.id, settings.max_failures)


def resumable_form(env: gym.vector.VectorEnv[Any, Any, Any]) -> Resumable | None:
    """What `make_vector_env` has made as something that can be saved, or None.

    Only the guards that it puts around itself are looked through: another wrapper may have a state that nobody saves.
    """
    while isinstance(env, VectorGuard | Enclosed):
        env = env.env
    return env if isinstance(env, Resumable) else None


def _refusal(settings: EnvSettings, error: BaseException) -> str:
    told, _, _ = str(error).partition(" was raised from the environment creator")  # what Gymnasium adds
    if any(told.startswith(f"{name} is ") for name in settings.kwargs):
        return f"env.kwargs.{told}"
    sentence, _, _ = one_line(error).partition(" was raised from the environment creator")
    taken = os.strerror(errno.EADDRINUSE) in sentence
    remedy = "; where each lane needs a port of its own, give it as {47110 + lane}, say" if taken else ""
    how = f"refuses env.kwargs {settings.kwargs}" if settings.kwargs else "cannot be made"
    return f"{settings.id} {how}: {sentence}{remedy}"
