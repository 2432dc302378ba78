"""Nested spaces as a flat list of simple ones.

Legend: B lanes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Convert = Callable[[np.ndarray], np.ndarray]

_WHOLE = "observation"  # name of the only part of an observation that is not a Dict or a Tuple


class Leaf(NamedTuple):
    """One simple space inside nested Dict and Tuple spaces."""

    path: tuple[str | int, ...]
    space: gym.Space[Any]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path)) or _WHOLE

    def named(self, use: str) -> str:
        """This leaf in a sentence, as a part of the observation or action space."""
        return f"the {use} space's part {self.name!r}, {self.space}," if self.path else f"the {use} space {self.space}"

    def of(self, value: Any) -> np.ndarray:
        """This leaf's array inside a batched value of the whole space."""
        for key in self.path:
            value = value[key]
        return np.asarray(value)


def leaves_of(space: gym.Space[Any], path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """The simple spaces inside `space`, in their order."""
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from leaves_of(child, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from leaves_of(child, (*path, index))
    else:
        yield Leaf(path, space)


def nested(space: gym.Space[Any], arrays: Iterator[np.ndarray]) -> Any:
    """The arrays of the leaves, in their order, as `space` nests them."""
    if isinstance(space, spaces.Dict):
        return {key: nested(child, arrays) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(nested(child, arrays) for child in space.spaces)
    return next(arrays)


def size_of(shape: tuple[int, ...]) -> int:
    """How many numbers a shape holds."""
    return int(np.prod(shape, dtype=np.int64))
