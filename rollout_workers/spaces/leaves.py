"""Nested spaces as a flat list of simple ones.

Legend: B environments.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from textwrap import shorten
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mneme.envs import Misfit

Convert = Callable[[np.ndarray], np.ndarray]

LARGEST = 4_000_000
"""Numbers and categories of a part that a network is built for: the weights of more fill a machine by themselves."""

_SAID = 160  # letters of a space in a sentence: bounds that differ from number to number may fill pages
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
        space = shorten(str(self.space), _SAID, placeholder=" ...")
        return f"the {use} space's part {self.name!r}, {space}," if self.path else f"the {use} space {space}"

    @property
    def width(self) -> int:
        """The number of values that the network reads or gives for it: one per category, or else one per number."""
        if isinstance(self.space, spaces.Discrete):
            return int(self.space.n)
        if isinstance(self.space, spaces.MultiDiscrete):
            return sum(map(int, self.space.nvec.ravel()))
        return size_of(self.space.shape or ())

    def check_size(self, use: str, remedy: str) -> None:
        """Refuse a part that holds nothing, or that is too large for any network.

        Raises:
            ValueError: one sentence.
        """
        if self.width == 0:
            raise ValueError(f"{self.named(use)} has size 0: it holds no numbers; {remedy}")
        if self.width > LARGEST:
            categorical = isinstance(self.space, (spaces.Discrete, spaces.MultiDiscrete))
            raise ValueError(
                f"{self.named(use)} has {self.width:,} {'categories' if categorical else 'numbers'}, and a network for "
                f"more than {LARGEST:,} is not built; {remedy}, so that it has fewer"
                f"{' (as digits of a MultiDiscrete, say)' if categorical else ''}"
            )

    def of(self, value: Any) -> np.ndarray:
        """This leaf's array inside a value of the whole space, of one or batched.

        Raises:
            Misfit: there is none.
        """
        for depth, key in enumerate(self.path):
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise Misfit(self._lacking(value, depth)) from None
        return np.asarray(value)

    def _lacking(self, value: Any, depth: int) -> str:
        """That a value so deep inside does not hold the next part of the path, in a sentence."""
        part = ".".join(map(str, self.path[: depth + 1]))
        inside = f" in {'.'.join(map(str, self.path[:depth]))!r}" if depth else ""
        if isinstance(value, np.ndarray):
            given = f"an array of shape {list(value.shape)}"
        elif isinstance(value, Mapping):
            given = f"a dict of {', '.join(map(repr, value)) or 'nothing'}"
        else:
            given = f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
        needed = "a dict" if isinstance(self.path[depth], str) else "a tuple"
        return f"its part {part!r} is missing: what is given{inside} is {given}; give {needed} with that part"


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
    """The number of elements of an array of this shape."""
    return math.prod(shape)
