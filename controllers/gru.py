"""Gated recurrent unit (Cho et al. 2014), in torch's convention h' = (1 - z) n + z h."""

import torch
from torch import Generator, Tensor, nn

from controllers.controller import Carry, Controller
from controllers.initialisation import chrono_bias, gate_weights
from controllers.scans.gru import GruParameters, gru_cell, gru_scan
from controllers.settings import ControllerSettings


class GruController(Controller):
    """Parameters as in `torch.nn.GRUCell` (gates r, z, n); it carries `h` [B, H]."""

    initial_h: Tensor

    def __init__(self, input_size: int, settings: ControllerSettings, horizon: int, generator: Generator) -> None:
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

    def gru_parameters(self) -> GruParameters:
        return GruParameters(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = gru_cell(x_BD, carry["h"], self.gru_parameters())
        return h_BH, {"h": h_BH}

    def fast_scan(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        y_TBH, h_BH = gru_scan(x_TBD, reset_TB, carry["h"], self.initial_h, self.gru_parameters())
        return y_TBH, {"h": h_BH}
