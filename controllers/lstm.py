"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000)."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import chrono_bias, gate_weights
from mneme.controllers.scans.cell_norm import LstmNorm, normed_lstm_cell, normed_lstm_scan
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState, lstm_cell
from mneme.controllers.scans.lstm.scan import lstm_scan
from mneme.controllers.scans.lstm.torch import lstm_step
from mneme.controllers.settings import LstmSettings


class LstmController(Controller):
    """Parameters as in `torch.nn.LSTMCell` (gates i, f, g, o); it carries `h` and `c` [B, H]."""

    settings_class = LstmSettings
    cuts_gradients = True
    mixes_precision = True
    # triton only where the settings ask for it, until it has been timed on a GPU
    backends: Sequence[str] = ("numba", "torch", "triton")
    initial_h: Tensor
    initial_c: Tensor

    def __init__(self, input_size: int, settings: LstmSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        shapes = {"h": (hidden,), "c": (hidden,)}
        super().__init__(input_size, hidden, shapes, settings.initial_carry == "learned")
        w_ih, w_hh = gate_weights(4, input_size, hidden, generator)
        b_ih = torch.zeros(4 * hidden)
        if settings.chrono:
            b_ih[hidden : 2 * hidden] = chrono_bias(hidden, horizon, generator)
            b_ih[:hidden] = -b_ih[hidden : 2 * hidden]
        self.weight_ih = nn.Parameter(w_ih)
        self.weight_hh = nn.Parameter(w_hh)
        self.bias_ih = nn.Parameter(b_ih)
        self.bias_hh = nn.Parameter(torch.zeros(4 * hidden))
        self.gate_gains = nn.Parameter(torch.ones(2, 4 * hidden)) if settings.layer_norm else None
        self.memory_norm = nn.Parameter(torch.tensor([[1.0], [0.0]]).repeat(1, hidden)) if settings.layer_norm else None
        self.backends = ("torch",) if settings.layer_norm else type(self).backends

    def lstm_parameters(self) -> LstmParameters:
        return LstmParameters(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def lstm_norm(self) -> LstmNorm | None:
        if self.gate_gains is None or self.memory_norm is None:
            return None
        return LstmNorm(*self.gate_gains, *self.memory_norm)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        arguments = x_BD, LstmState(carry["h"], carry["c"]), self.lstm_parameters()
        norm = self.lstm_norm()
        state = lstm_cell(*arguments) if norm is None else normed_lstm_cell(*arguments, norm)
        return state.h, state._asdict()

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        state, initial = LstmState(carry["h"], carry["c"]), LstmState(self.initial_h, self.initial_c)
        arguments = x_TBD, reset_TB, state, initial, self.lstm_parameters()
        norm = self.lstm_norm()
        if norm is None:
            y_TBH, state = lstm_scan(*arguments, self.backend_on(x_TBD.device), cut_TB)
        else:
            y_TBH, state = normed_lstm_scan(*arguments, norm, cut_TB)
        return y_TBH, state._asdict()

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        arguments = x_BD, LstmState(carry["h"], carry["c"]), self.lstm_parameters()
        norm = self.lstm_norm()
        state = lstm_step(*arguments) if norm is None else normed_lstm_cell(*arguments, norm)
        return state.h, {"h": state.h.clone(), "c": state.c}

    def stepper(self) -> Step:
        if self.backend_on(self.weight_hh.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.lstm.numba import LstmStepper  # here, as numba may be missing

        stepped = LstmStepper(LstmState(self.initial_h, self.initial_c), self.lstm_parameters())

        def step(x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            state = stepped(x_BD, reset_B, LstmState(carry["h"], carry["c"]))
            return state.h, state._asdict()

        return step
