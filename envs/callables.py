"""Environments that are given as something to call, in place of a registered id."""

import inspect
import re
import secrets
import sys
from itertools import count
from operator import attrgetter
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from mneme.envs.plain import Creator

HERE = "here/"
"""Begins the ids of what only the present process can make."""

_TOKEN = secrets.token_hex(4)  # of this process, so that no other takes something else for it


class Unseen:
    """A function that makes vector environments; what they are shows when one is made."""

    def __init__(self, creator: Creator) -> None:
        self.creator = creator
        self.__signature__ = inspect.signature(creator)

    def __call__(self, **kwargs: Any) -> Any:
        return self.creator(**kwargs)


def id_of(creator: Creator) -> str:
    """The id by which `make_vector_env` makes what a callable makes.

    It is `module:name` where any process can import the callable by that; else it begins with `HERE`, and the callable
    is registered in this process. One that takes `num_envs` makes vector environments.

    Raises:
        ValueError: it is not callable.
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
        id = f"{HERE}{plain}-{_TOKEN}-v{version}"
        known = gym.registry.get(id)
        if known is None:
            gym.registry[id] = spec_of(id, creator)
            return id
        if creator in (known.entry_point, getattr(known.vector_entry_point, "creator", known.vector_entry_point)):
            return id
    raise AssertionError("versions never end")


def found_in(module: str, name: str) -> EnvSpec | None:
    """The spec of a callable by its name in an imported module, or None if there is no such callable."""
    creator = _attribute(module, name)
    return spec_of(f"{module}:{name}", creator) if callable(creator) else None


def spec_of(id: str, creator: Creator) -> EnvSpec:
    """The spec of what a callable makes."""
    try:
        vector = "num_envs" in inspect.signature(creator).parameters
    except ValueError:  # not written in Python
        vector = False
    if not vector:
        return EnvSpec(id, entry_point=creator)
    return EnvSpec(id, vector_entry_point=creator if hasattr(creator, "metadata") else Unseen(creator))


def _attribute(module: str, name: str) -> Any:
    try:
        return attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None
