"""From action spaces to the distributions that a policy acts with."""

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from mneme.controllers import ActionDistribution, Bernoulli, Categorical, Gaussian, Joint
from mneme.rollout_workers.spaces.leaves import Convert, Leaf, size_of


@dataclass(frozen=True)
class ActedLeaf:
    """A simple space of the action, and what fills it."""

    distribution: ActionDistribution
    convert: Convert  # slots [B, n] of the packed action to the environment's array [B, ...]


def acted_leaf(leaf: Leaf, squash: bool) -> ActedLeaf:
    """The action distribution for a leaf of the action space, and the conversion of its actions to the environment's.

    Raises:
        ValueError: no distribution does.
    """
    space = leaf.space
    leaf.check_size("action", "wrap the environment")
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return ActedLeaf(Categorical(int(space.n)), lambda a: a[:, 0].astype(np.int64, copy=False) + first)
    if isinstance(space, spaces.MultiDiscrete):
        shape, start = space.shape, space.start
        distributions = Joint(tuple(Categorical(int(n)) for n in space.nvec.ravel()))
        return ActedLeaf(distributions, lambda a: a.astype(np.int64).reshape(-1, *shape) + start)
    if isinstance(space, spaces.MultiBinary):
        shape, dtype = space.shape, space.dtype
        return ActedLeaf(Bernoulli(size_of(shape)), lambda a: a.reshape(-1, *shape).astype(dtype))
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f":
        distribution = Gaussian(size_of(space.shape), squash)
        return ActedLeaf(distribution, _box_action(space, leaf, squash))
    raise ValueError(
        f"{leaf.named('action')} is not supported (Discrete, MultiDiscrete, MultiBinary, Box of floats, and Dict and "
        f"Tuple of these are); wrap the environment"
    )


def _box_action(space: spaces.Box, leaf: Leaf, squash: bool) -> Convert:
    """The conversion of Gaussian actions [B, A] to a Box: where all sides are bounded, [-1, 1] is scaled to span it;
    elsewhere the numbers are taken as they are and clipped to the bounds that there are."""
    low, high, shape, dtype = space.low, space.high, space.shape, space.dtype
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    if squash and not bounded:
        raise ValueError(f"spaces.squash is set, but {leaf.named('action')} has no bounds; leave it unset")

    def convert(a: np.ndarray) -> np.ndarray:
        a = a.reshape(-1, *shape)
        if bounded:
            unit = np.tanh(a) if squash else np.clip(a, -1.0, 1.0)
            a = (0.5 - 0.5 * unit) * low + (0.5 + 0.5 * unit) * high  # high - low may be too large for a float
        return np.clip(a, low, high).astype(dtype, copy=False)

    return convert
