"""Which Box is an image, where its channels are, and what its numbers are multiplied by.

Axis letters: F frames, H height, W width, C channels.
"""

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from mneme.controllers import Image
from mneme.rollout_workers.settings import FLAT
from mneme.rollout_workers.spaces.leaves import Convert, Leaf, size_of

_LEAST_SIDE = 3  # pixels; anything smaller is a list of numbers
_PIXEL = 255
_LARGEST_BOUND = 65535  # beyond it a bound says only that there is one


class Reading(NamedTuple):
    """The layout of an image's axes and the scale of its numbers."""

    layout: str  # the letter of each axis
    scale: float  # what every number is multiplied by


def reading_of(leaf: Leaf, layout: str | None, scale: float | None) -> Reading | None:
    """The layout and scale of a Box as an image, or None if it is a list of numbers; unless given, by the Box itself.

    Raises:
        ValueError: the channels may be first or last, or what is given does not fit.
    """
    space = leaf.space
    assert isinstance(space, spaces.Box)
    if layout is None:
        layout = _layout(leaf, space)
    elif layout != FLAT and len(layout) != len(space.shape):
        raise ValueError(
            f"spaces.layout is {layout!r} for {leaf.named('observation')} which has {len(space.shape)} axes; "
            f"give a letter for each, or flat"
        )
    if layout == FLAT:
        if scale is not None:
            raise ValueError(
                f"spaces.scale is {scale} for {leaf.named('observation')} which is read as numbers; leave it out, or "
                f"say with spaces.layout how it is an image"
            )
        return None
    return Reading(layout, _scale(space) if scale is None else scale)


def image_of(space: spaces.Box, reading: Reading) -> tuple[Image, Convert]:
    """The part that a policy reads, channels first or last, and what makes it of arrays [B, *shape]; frames become
    channels. Bytes and booleans are stored as bytes."""
    shape, layout = space.shape, reading.layout
    channels_first = layout.endswith("HW") and layout != "HW"
    order = (
        range(len(shape)) if channels_first else sorted(range(len(shape)), key=lambda axis: "HWFC".index(layout[axis]))
    )
    moved = tuple(shape[axis] for axis in order)
    image = (size_of(moved[:-2]), moved[-2], moved[-1]) if channels_first else (moved[0], moved[1], size_of(moved[2:]))
    stored = np.dtype(np.uint8 if space.dtype in (np.uint8, np.bool_) else np.float32)
    axes = (0, *(axis + 1 for axis in order))

    def convert(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), *shape).transpose(axes).reshape(len(x), *image).astype(stored, copy=False)

    return Image(image, not channels_first, reading.scale), convert


def _layout(leaf: Leaf, space: spaces.Box) -> str:
    axes, bytes_ = len(space.shape), _is_bytes(space)
    if axes == 2:
        return "HW" if bytes_ and min(space.shape) >= _LEAST_SIDE else FLAT
    if axes not in (3, 4):
        return FLAT
    fits = {"HWC": space.shape[-3:-1], "CHW": space.shape[-2:]}
    fits = {layout: sides for layout, sides in fits.items() if min(sides) >= _LEAST_SIDE}
    chosen = list(fits) if len(fits) < 2 else _likelier(space.shape[-3:], bytes_)
    if len(chosen) == 2:
        raise ValueError(
            f"{leaf.named('observation')} may have its channels first or last; say which with "
            f"spaces.layout={{{leaf.name}: {chosen[0].rjust(axes, 'F')}}} or {chosen[1].rjust(axes, 'F')}, or flat for "
            f"plain numbers"
        )
    return chosen[0].rjust(axes, "F") if chosen else FLAT


def _likelier(shape: tuple[int, ...], bytes_: bool) -> list[str]:
    """Both sides of an image are alike, or else channels are the fewest: half of either side, but for pictures."""
    a, b, c = shape
    if (a == b) != (b == c):
        return ["HWC"] if a == b else ["CHW"]
    times = 1 if bytes_ else 2
    if c < min(a, b) and times * c <= min(a, b):
        return ["HWC"]
    if a < min(b, c) and times * a <= min(b, c):
        return ["CHW"]
    return ["HWC", "CHW"]


def _scale(space: spaces.Box) -> float:
    """To about [0, 1] by the bounds, where these say something."""
    largest = max(abs(float(space.low.min())), abs(float(space.high.max())))
    return 1.0 / largest if 1 < largest <= _LARGEST_BOUND else 1.0


def _is_bytes(space: spaces.Box) -> bool:
    return bool(space.dtype == np.uint8 and space.low.min() == 0 and space.high.max() == _PIXEL)
