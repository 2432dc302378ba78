"""The block around a linear recurrence: what it lacks in a nonlinear state, the layer after it supplies.

Axis letters: T time (K steps of one block), B environments, D input features, H hidden.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mneme.controllers.controller import Carry, Controller
from mneme.controllers.initialisation import linear, projection
from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.precision import wide
from mneme.controllers.scans.blocks import in_blocks
from mneme.controllers.scans.rows.layers import glu_beside, normed
from mneme.controllers.settings import ControllerSettings
from mneme.controllers.traces import Run

_Mixer = Callable[[Tensor], tuple[Tensor, Carry]]


class ResidualBlock(Controller):
    """y = x + GLU(GELU(mixer(LayerNorm(x)))), the block of Orvieto et al. 2023 (appendix A).

    x is the input, brought to the hidden size where it has another. A subclass is the mixer over time: [..., H] to
    [..., mixed_size]. Nothing on the way from the input to the mixer has a bias, so that blank observations leave a
    linear state alone.
    """

    cuts_gradients = True

    def __init__(
        self,
        input_size: int,
        settings: ControllerSettings,
        carry_shapes: Mapping[str, tuple[int, ...]],
        generator: Generator,
        mixed_size: int,
    ) -> None:
        hidden = settings.hidden_size
        super().__init__(input_size, hidden, carry_shapes, settings.initial_carry == "learned")
        self.project = projection(input_size, hidden, generator)
        self.norm = LayerNorm(hidden, bias=False)
        self.mix = linear(mixed_size, 2 * hidden, 1.0, generator)

    @abstractmethod
    def mixer_cell(self, u_BH: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One step of the mixer, as in `cell`."""

    @abstractmethod
    def mixer_scan(
        self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """All steps of the mixer, as in `fast_scan`."""

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self._around(x_BD, partial(self.mixer_cell, carry=carry), "torch")

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        def steps(x_KBD: Tensor, reset_KB: Tensor, carry: Carry, cut_KB: Tensor | None) -> tuple[Tensor, Carry]:
            mixer = partial(self.mixer_scan, reset_TB=reset_KB, carry=carry, cut_TB=cut_KB)
            return self._around(x_KBD, mixer, self.backend_on(x_KBD.device))

        return in_blocks(steps, x_TBD, reset_TB, carry, cut_TB)

    def elementwise_runs(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        x_TBH = wide(self.project(x_TBD))
        return self.mixer_runs(normed(x_TBH, self.norm, self.backend_on(x_TBD.device)), reset_TB, carry)

    def mixer_runs(self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        """The runs of the mixer, as in `elementwise_runs`."""
        return {}

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        if self.backend_on(x_BD.device) != "numba":
            return self.cell(x_BD, carry)
        no_reset_TB = torch.zeros(1, len(x_BD), dtype=torch.bool)
        mixer = partial(self.mixer_scan, reset_TB=no_reset_TB, carry=carry)
        y_TBH, carry = self._around(x_BD.unsqueeze(0), mixer, "numba")
        return y_TBH[0], carry

    def _around(self, x: Tensor, mixer: _Mixer, backend: str) -> tuple[Tensor, Carry]:
        x = wide(self.project(x))
        mixed, carry = mixer(normed(x, self.norm, backend))
        return glu_beside(x, self.mix(F.gelu(mixed)), backend), carry
