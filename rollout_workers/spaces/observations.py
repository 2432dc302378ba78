"""From observation spaces to the parts that a policy's encoder knows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from mneme.controllers import ObservationPart, OneHot, Vector
from mneme.rollout_workers.settings import SpaceSettings
from mneme.rollout_workers.spaces.images import Reading, image_of, reading_of
from mneme.rollout_workers.spaces.leaves import Convert, Leaf, size_of

PREVIOUS_REWARD = "previous_reward"


@dataclass(frozen=True)
class ObservedLeaf:
    """A simple space of the observation, and what becomes of it."""

    leaf: Leaf
    part: ObservationPart
    convert: Convert  # the environment's array [B, ...] to the part's
    reading: Reading | None = None  # of an image

    def __str__(self) -> str:
        shape, dtype = self.leaf.space.shape, self.leaf.space.dtype
        if self.reading is not None:
            factor = "" if self.reading.scale == 1 else f" × 1/{1 / self.reading.scale:.4g}"
            how = f"image {self.reading.layout}{factor}"
        elif isinstance(self.part, OneHot):
            counts = self.part.counts
            how = f"{counts[0]} categories" if len(counts) == 1 else f"{len(counts)} numbers of categories"
        else:
            how = f"{size_of(self.part.shape)} number{'s' * (self.part.shape != (1,))}"
        return f"{self.leaf.name} {shape} {dtype} as {how}"


def observed_leaves(leaves: list[Leaf], settings: SpaceSettings) -> list[ObservedLeaf]:
    """The parts of these leaves that the agent observes, chosen by the settings.

    Raises:
        ValueError: a space that no encoder handles, or a choice in the settings that does not fit.
    """
    if settings.keys is not None:
        names = {str(leaf.path[0]) for leaf in leaves if leaf.path}
        for key in settings.keys:
            if key not in names:
                raise ValueError(
                    f"spaces.keys names {key!r}, but the observation has {', '.join(sorted(names)) or 'no parts'}"
                )
        leaves = [leaf for leaf in leaves if leaf.path and str(leaf.path[0]) in settings.keys]
    if not leaves and not settings.previous_reward:
        raise ValueError(
            "the observation space has no parts, so there is nothing for a policy to read; let the environment show "
            "something, if only a Discrete(1)"
        )
    _check_names(leaves, settings)
    observed = [_observed_leaf(leaf, settings) for leaf in leaves]
    if settings.features is None:
        return observed
    if len(observed) != 1 or not isinstance(observed[0].part, Vector):
        raise ValueError(
            f"spaces.features is {list(settings.features)}, but the observation is not one flat Box; "
            f"leave it unset, or choose parts with spaces.keys"
        )
    size, convert = observed[0].part.size, observed[0].convert
    if max(settings.features) >= size:
        raise ValueError(
            f"spaces.features names feature {max(settings.features)}, but the observation has {size}; "
            f"they are numbered from 0"
        )
    chosen = list(settings.features)
    return [ObservedLeaf(observed[0].leaf, Vector(len(chosen)), lambda x: convert(x)[:, chosen])]


def _check_names(leaves: list[Leaf], settings: SpaceSettings) -> None:
    names = [leaf.name for leaf in leaves]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} parts of the observation are named {name!r}, where what is nested is joined by "
                f"dots; rename all but one, or choose parts with spaces.keys"
            )
    if settings.previous_reward and PREVIOUS_REWARD in names:
        raise ValueError(
            f"spaces.previous_reward is set, but the observation has a part {PREVIOUS_REWARD!r} of its own; leave it "
            f"unset, or rename the part"
        )
    for setting in ("layout", "scale"):
        for name in getattr(settings, setting):
            if name not in names:
                raise ValueError(
                    f"spaces.{setting} names {name!r}, but the parts of the observation are {', '.join(names)}"
                )


def _observed_leaf(leaf: Leaf, settings: SpaceSettings) -> ObservedLeaf:
    space = leaf.space
    remedy = "choose parts with spaces.keys, or wrap the environment" if leaf.path else "wrap the environment"
    leaf.check_size("observation", remedy)
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "fiub":
        reading = reading_of(leaf, settings.layout.get(leaf.name), settings.scale.get(leaf.name))
        if reading is not None:
            return ObservedLeaf(leaf, *image_of(space, reading), reading)
        return ObservedLeaf(leaf, Vector(size_of(space.shape)), _as_floats)
    if isinstance(space, spaces.MultiBinary):
        return ObservedLeaf(leaf, Vector(size_of(space.shape)), _as_floats)
    if isinstance(space, spaces.Discrete):
        return ObservedLeaf(leaf, OneHot((int(space.n),)), _categories(leaf, space.start, space.n))
    if isinstance(space, spaces.MultiDiscrete):
        counts = OneHot(tuple(int(n) for n in space.nvec.ravel()))
        return ObservedLeaf(leaf, counts, _categories(leaf, space.start, space.nvec))
    raise ValueError(
        f"{leaf.named('observation')} is not supported (Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple "
        f"of these are); {remedy}"
    )


def _as_floats(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32, copy=False)


def _categories(leaf: Leaf, start: Any, count: Any) -> Convert:
    """From a space's numbers, `count` from `start` on, to categories [B, n] that are counted from 0."""
    first_N, count_N = np.ravel(start).astype(np.int64), np.ravel(count).astype(np.uint64)

    def convert(x: np.ndarray) -> np.ndarray:
        category_BN = x.reshape(len(x), -1).astype(np.int64) - first_N
        outside_BN = category_BN.view(np.uint64) >= count_N  # as numbers without a sign, the negative ones are large
        if outside_BN.any():
            raise ValueError(
                f"{leaf.named('observation')} was given {x.reshape(len(x), -1)[outside_BN][0]}, outside it"
            )
        return category_BN

    return convert
