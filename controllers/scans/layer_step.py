"""Steps of a whole layer without autograd, compiled by numba: what a kernel is given at each of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mneme.controllers.scans.machine_code import arrays, scratch

LANES = 64
"""That go through a layer at once, so that what is between its products stays in a core's cache."""


class LayerStep:
    """A `Step` with weights that were laid out once; they must not change meanwhile.

    Args:
        kernel: of the inputs [B, D], reset flags [B], weights, states, which become those after the step, outputs
            [B, H], and room, a tuple of arrays.
        weights: as the kernel takes them.
        states: names in the carry, in the kernel's order.
        like: a tensor of the states' type.
        outputs: H.
        room: for the kernel to work in.
    """

    def __init__(
        self,
        kernel: Callable[..., None],
        weights: Any,
        states: Sequence[str],
        like: Tensor,
        outputs: int,
        room: tuple[np.ndarray, ...],
    ) -> None:
        self._kernel, self._weights, self._states = kernel, weights, states
        self._room, self._y = room, scratch(like, (0, outputs))[0]

    def __call__(self, x_BD: Tensor, reset_B: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs [B, H], good until the next call, and the carry, which has been overwritten."""
        x, reset = arrays(x_BD, reset_B)
        if len(x) != len(self._y):
            self._y = np.empty((len(x), self._y.shape[1]), self._y.dtype)
            self._y_BH = torch.from_numpy(self._y)
        after = {name: carry[name].contiguous() for name in self._states}
        self._kernel(x, reset, self._weights, *arrays(*after.values()), self._y, self._room)
        return self._y_BH, after
