"""The ids that this process knows, for processes that may not: a notebook or a script registers its own by hand."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from mneme.envs.guard import one_line

_MAIN = "__main__:"
_left_out: dict[str, str] = {}  # id -> why; of this process

Registered = Mapping[str, bytes]
"""Id -> its `EnvSpec`, pickled with all of the code that no other process can import."""


def registered_here() -> dict[str, bytes]:
    """Every id of this process, save those whose code cannot be pickled."""
    found = {}
    for id, spec in gym.registry.items():
        pickled = _pickled(spec)
        if isinstance(pickled, bytes):
            found[id] = pickled
    return found


def check_sendable(id: str) -> None:
    """Refuse a task that only this process can make; one of a package (package:Name-v0) any other can import.

    Raises:
        ValueError: one sentence.
    """
    package, _, name = id.rpartition(":")
    if name not in gym.registry:
        return  # it is found in the package itself
    pickled = _pickled(gym.registry[name])
    if isinstance(pickled, Exception) and package in ("", "__main__"):
        reason = " ".join(f"{type(pickled).__name__}: {pickled}".split())
        raise ValueError(
            f"env.id is {id!r}, whose code cannot be sent to other processes ({reason}); put it into a module of its "
            f"own that registers it, and write module:{name}"
        )


def register_missing(registered: Registered) -> None:
    """Register those of another process that are unknown here; one whose code is not here is left out."""
    missing = registered.keys() - gym.registry.keys()
    for id in missing:
        try:
            gym.registry[id] = cloudpickle.loads(registered[id])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a module does when it is imported
            _left_out[id] = one_line(error)
    if missing:  # a module that is imported later may register its own once more
        warnings.filterwarnings("ignore", message=".*Overriding environment .* already in registry")


def why_left_out(id: str) -> str | None:
    """Why an id of another process could not be registered here; None if none such was tried."""
    return _left_out.get(id)


def in_any_process(spec: EnvSpec) -> EnvSpec:
    """The spec with what it names in the main module, which is another in each process, put in its place.

    Raises:
        Exception: it names something that is not there.
    """
    entry_points: dict[str, Any] = {
        name: load_env_creator(value)
        for name in ("entry_point", "vector_entry_point")
        if isinstance(value := getattr(spec, name), str) and value.startswith(_MAIN)
    }
    return replace(spec, **entry_points) if entry_points else spec


def _pickled(spec: EnvSpec) -> bytes | Exception:
    try:
        pickled: bytes = cloudpickle.dumps(in_any_process(spec))
        return pickled
    except Exception as error:
        return error
