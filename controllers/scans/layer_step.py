"""Steps of a whole layer without autograd, compiled by numba: what a kernel is given at each of them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mneme.controllers.scans.machine_code import arrays, scratch

LANES = 64
"""That go through a layer at once, so that what is between its products stays in a core's cache."""


class LayerStep:
    """A `Step` with weights that were laid out once; they must not change meanwhile.

    Args:
        kernel: of the inputs [B, D], reset flags [B], weights, states, which become those after the step, outputs
            [B, H], and room.
        weights: as the kernel takes them.
        states: names in the carry, in the kernel's order.
        like: a tensor of the states' type.
        outputs: H.
        room: shapes of what the kernel works in.
    """

    def __init__(
        self,
        kernel: Callable[..., None],
        weights: Any,
        states: Sequence[str],
        like: Tensor,
        outputs: int,
        room: Sequence[tuple[int, ...]],
    ) -> None:
        self._kernel, self._weights, self._states = kernel, weights, states
        self._y_BH, self._room = like.detach().new_empty(0, outputs), scratch(like, *room)

    def __call__(self, x_BD: Tensor, reset_B: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs [B, H], good until the next call, and the carry, which has been overwritten."""
        if len(x_BD) != len(self._y_BH):
            self._y_BH = self._y_BH.new_empty(len(x_BD), self._y_BH.shape[1])
        after = {name: carry[name].contiguous() for name in self._states}
        self._kernel(*arrays(x_BD, reset_B), self._weights, *arrays(*after.values(), self._y_BH), *self._room)
        return self._y_BH, after
