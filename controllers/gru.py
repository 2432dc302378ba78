"""Gated recurrent unit (Cho et al. 2014), in torch's convention h' = (1 - z) n + z h."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import chrono_bias, gate_weights
from mneme.controllers.scans.cell_norm import GruNorm, normed_gru_cell, normed_gru_scan
from mneme.controllers.scans.gru.cell import GruParameters, gru_cell
from mneme.controllers.scans.gru.scan import gru_scan
from mneme.controllers.scans.gru.torch import gru_step
from mneme.controllers.settings import GruSettings


class GruController(Controller):
    """Parameters as in `torch.nn.GRUCell` (gates r, z, n); it carries `h` [B, H]."""

    settings_class = GruSettings
    cuts_gradients = True
    mixes_precision = True
    # triton only where the settings ask for it, until it has been timed on a GPU
    backends: Sequence[str] = ("numba", "torch", "triton")
    initial_h: Tensor

    def __init__(self, input_size: int, settings: GruSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        super().__init__(input_size, hidden, {"h": (hidden,)}, settings.initial_carry == "learned")
        w_ih, w_hh = gate_weights(3, input_size, hidden, generator)
        b_ih = torch.zeros(3 * hidden)
        if settings.chrono:
            b_ih[hidden : 2 * hidden] = chrono_bias(hidden, horizon, generator)
        self.weight_ih = nn.Parameter(w_ih)
        self.weight_hh = nn.Parameter(w_hh)
        self.bias_ih = nn.Parameter(b_ih)
        self.bias_hh = nn.Parameter(torch.zeros(3 * hidden))
        self.gate_gains = nn.Parameter(torch.ones(2, 3 * hidden)) if settings.layer_norm else None
        self.backends = ("torch",) if settings.layer_norm else type(self).backends

    def gru_parameters(self) -> GruParameters:
        return GruParameters(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def gru_norm(self) -> GruNorm | None:
        return None if self.gate_gains is None else GruNorm(*self.gate_gains)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        arguments = x_BD, carry["h"], self.gru_parameters()
        norm = self.gru_norm()
        h_BH = gru_cell(*arguments) if norm is None else normed_gru_cell(*arguments, norm)
        return h_BH, {"h": h_BH}

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        arguments = x_TBD, reset_TB, carry["h"], self.initial_h, self.gru_parameters()
        norm = self.gru_norm()
        if norm is None:
            y_TBH, h_BH = gru_scan(*arguments, self.backend_on(x_TBD.device), cut_TB)
        else:
            y_TBH, h_BH = normed_gru_scan(*arguments, norm, cut_TB)
        return y_TBH, {"h": h_BH}

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        arguments = x_BD, carry["h"], self.gru_parameters()
        norm = self.gru_norm()
        h_BH = gru_step(*arguments) if norm is None else normed_gru_cell(*arguments, norm)
        return h_BH, {"h": h_BH.clone()}

    def stepper(self) -> Step:
        if self.backend_on(self.weight_hh.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.gru.numba import gru_stepper  # here, as numba may be missing

        stepped = gru_stepper(self.initial_h, self.gru_parameters())

        def step(x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            h_BH = stepped(x_BD, reset_B, carry["h"])
            return h_BH, {"h": h_BH}

        return step
