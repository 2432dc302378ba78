"""A sequence model in JAX, as the JAX peer trains it: pure functions of its parameters.

Axis letters: T time, B lanes, D input features, H hidden units.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

Carry = tuple[Array, ...]  # [B, ...] each
Parameters = dict[str, Array]


class Core(NamedTuple):
    """What an agent is made of between observations and heads."""

    initial: Callable[[Array, int, int], Parameters]  # from a key, D and the horizon; drawn as Mneme draws them
    carry: Callable[[int], Carry]  # zeros for so many lanes
    step: Callable[[Parameters, Array, Array, Carry], tuple[Array, Carry]]  # of x [B, D], reset [B]; gives y [B, H]
    scan: Callable[[Parameters, Array, Array, Carry], Array]  # of x [T, B, D], reset [T, B]; gives y [T, B, H]


def reset_to_zeros(carry: Carry, reset_B: Array) -> Carry:
    """The carry, zeros in the lanes that are reset."""
    return tuple(jnp.where(reset_B.reshape(-1, *(1,) * (part.ndim - 1)), 0.0, part) for part in carry)
