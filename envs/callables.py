"""Environments that are given as something to call, in place of a registered id."""

import inspect
import re
import sys
from collections.abc import Mapping
from itertools import count
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from mneme.envs.plain import Creator

HERE = "here/"
"""Begins the ids of what only the present process can make."""


class _VectorCreator:
    """A function that makes vector environments, with the metadata of what it makes, as a class has them."""

    def __init__(self, creator: Creator, metadata: Mapping[str, Any]) -> None:
        self._creator, self.metadata = creator, dict(metadata)
        self.__signature__ = inspect.signature(creator)

    def __call__(self, **kwargs: Any) -> Any:
        return self._creator(**kwargs)


def id_of(creator: Creator) -> str:
    """The id by which `make_vector_env` makes what a callable makes.

    It is `module:name` where any process can import the callable by that; else it begins with `HERE`, and the callable
    is registered in this process. One that takes `num_envs` makes vector environments.

    Raises:
        ValueError: it is not callable, or what it makes cannot be found out.
    """
    if not callable(creator):
        raise ValueError(
            f"the environment is given as {creator!r}; give an id, or something that makes one when called"
        )
    module, name = getattr(creator, "__module__", None), getattr(creator, "__qualname__", "")
    if module not in (None, "__main__") and _attribute(module, name) is creator:
        return f"{module}:{name}"
    plain = re.sub(r"\W+", "-", name.rpartition(".")[2] or type(creator).__name__).strip("-")
    for version in count():
        id = f"{HERE}{plain}-v{version}"
        known = gym.registry.get(id)
        if known is None:
            gym.registry[id] = spec_of(id, creator)
            return id
        if creator in (known.entry_point, getattr(known.vector_entry_point, "_creator", known.vector_entry_point)):
            return id
    raise AssertionError("versions never end")


def found_in(module: str, name: str) -> EnvSpec | None:
    """What an imported module has under a name, if that can be called."""
    creator = _attribute(module, name)
    return spec_of(name, creator) if callable(creator) else None


def spec_of(id: str, creator: Creator) -> EnvSpec:
    """The spec of what a callable makes.

    Raises:
        ValueError: it takes `num_envs`, and making one fails.
    """
    try:
        vector = "num_envs" in inspect.signature(creator).parameters
    except ValueError:  # not written in Python
        vector = False
    if not vector:
        return EnvSpec(id, entry_point=creator)
    if not hasattr(creator, "metadata"):
        try:
            env = creator(num_envs=1)
        except Exception as error:
            raise ValueError(f"{id} cannot make one environment: {type(error).__name__}: {error}") from error
        creator = _VectorCreator(creator, env.metadata or {})
        env.close()
    return EnvSpec(id, vector_entry_point=creator)


def _attribute(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
