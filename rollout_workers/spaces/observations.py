"""From observation spaces to the parts that a policy's encoder knows."""

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from controllers import Image, ObservationPart, OneHot, Vector
from rollout_workers.settings import SpaceSettings
from rollout_workers.spaces.leaves import Convert, Leaf, size_of

_LEAST_IMAGE_SIDE = 3  # pixels; anything smaller is a list of numbers
_PIXEL = 255


@dataclass(frozen=True)
class ObservedLeaf:
    """A simple space of the observation, and what becomes of it."""

    leaf: Leaf
    part: ObservationPart
    convert: Convert  # the environment's array [B, ...] to the part's


def observed_leaves(leaves: list[Leaf], settings: SpaceSettings) -> list[ObservedLeaf]:
    """What the agent sees of these leaves.

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
    observed = [_observed_leaf(leaf) for leaf in leaves]
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


def _observed_leaf(leaf: Leaf) -> ObservedLeaf:
    space = leaf.space
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "fiub":
        if (image := _image_shape(space)) is not None:
            pixels = space.dtype == np.uint8
            stored = space.dtype if pixels else np.dtype(np.float32)
            channels_last = image[2] <= image[0]
            scale = 1.0 / _PIXEL if pixels else 1.0
            return ObservedLeaf(
                leaf, Image(image, channels_last, scale), lambda x: x.reshape(len(x), *image).astype(stored, copy=False)
            )
        return ObservedLeaf(leaf, Vector(size_of(space.shape)), _as_floats)
    if isinstance(space, spaces.MultiBinary):
        return ObservedLeaf(leaf, Vector(size_of(space.shape)), _as_floats)
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return ObservedLeaf(leaf, OneHot((int(space.n),)), lambda x: x.reshape(len(x), 1).astype(np.int64) - first)
    if isinstance(space, spaces.MultiDiscrete):
        firsts = space.start.ravel().astype(np.int64)
        counts = OneHot(tuple(int(n) for n in space.nvec.ravel()))
        return ObservedLeaf(leaf, counts, lambda x: x.reshape(len(x), -1).astype(np.int64) - firsts)
    remedy = "choose parts with spaces.keys, or wrap the environment" if leaf.path else "wrap the environment"
    raise ValueError(
        f"{leaf.named('observation')} is not supported (Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple "
        f"of these are); {remedy}"
    )


def _image_shape(space: spaces.Box) -> tuple[int, int, int] | None:
    """Three axes if the space holds images: any Box of three axes, and a Box of bytes of two."""
    shape = space.shape
    if len(shape) == 2 and space.dtype == np.uint8:
        shape = (*shape, 1)
    if len(shape) != 3:
        return None
    sides = shape[:2] if shape[2] <= shape[0] else shape[1:]
    return (shape[0], shape[1], shape[2]) if min(sides) >= _LEAST_IMAGE_SIDE else None


def _as_floats(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32, copy=False)
