"""Bistable recurrent cells (Vecoven, Ernst & Drion 2021): units of which each can hold a bit for ever."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import chrono_bias, gate_weights
from mneme.controllers.scans.nbrc.cell import NbrcParameters, nbrc_cell, next_state
from mneme.controllers.scans.nbrc.scan import nbrc_scan
from mneme.controllers.settings import NbrcSettings
from mneme.controllers.traces import Elementwise, Run, State


class NbrcController(Controller):
    """Parameters by the gates a, c, n of `scans.nbrc.cell`; it carries `h` [B, H].

    Chrono starts c as a GRU's z: time constants of 1 to horizon - 1 steps, c up to 1 - 1/horizon, so that what a step
    writes is still there at the horizon before anything has been learned. a starts at 1, where a unit is about to
    become bistable and gradients pass through tanh(a h) undamped. Where gates read a unit's own state alone, they start
    with weights of 1, as in the authors' code.
    """

    settings_class = NbrcSettings
    cuts_gradients = True
    mixes_precision = True
    backends: Sequence[str] = ("numba", "torch")
    initial_h: Tensor

    def __init__(self, input_size: int, settings: NbrcSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        super().__init__(input_size, hidden, {"h": (hidden,)}, settings.initial_carry == "learned")
        w_ih, w_hh = gate_weights(3, input_size, hidden, generator)
        bias = torch.zeros(2 * hidden)
        if settings.chrono:
            bias[hidden:] = chrono_bias(hidden, horizon, generator)
        self.weight_ih = nn.Parameter(w_ih)
        self.weight_hh = nn.Parameter(torch.ones(2 * hidden) if settings.cellular else w_hh[: 2 * hidden].clone())
        self.bias = nn.Parameter(bias)

    def nbrc_parameters(self) -> NbrcParameters:
        return NbrcParameters(self.weight_ih, self.weight_hh, self.bias)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = nbrc_cell(x_BD, carry["h"], self.nbrc_parameters())
        return h_BH, {"h": h_BH}

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        arguments = x_TBD, reset_TB, carry["h"], self.initial_h, self.nbrc_parameters()
        y_TBH, h_BH = nbrc_scan(*arguments, self.backend_on(x_TBD.device), cut_TB)
        return y_TBH, {"h": h_BH}

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = nbrc_cell(x_BD, carry["h"], self.nbrc_parameters())
        return h_BH, {"h": h_BH.clone()}

    def stepper(self) -> Step:
        if self.backend_on(self.weight_hh.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.nbrc.numba import nbrc_stepper  # here, as numba may be missing

        stepped = nbrc_stepper(self.initial_h, self.nbrc_parameters())

        def step(x_BD: Tensor, reset_B: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
            h_BH = stepped(x_BD, reset_B, carry["h"])
            return h_BH, {"h": h_BH}

        return step

    def elementwise(self) -> dict[str, Elementwise]:
        p = self.nbrc_parameters()
        if not p.cellular:
            return {}
        pairs = {"own": p.w_hh.unflatten(0, (2, -1)), "bias": p.bias.unflatten(0, (2, -1))}
        parameters = {"input": p.w_ih.unflatten(0, (3, -1)), **pairs}
        return {"h": Elementwise(parameters, _advance, (self.initial_h,))}

    def elementwise_runs(self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        h_TBH, _ = self.fast_scan(x_TBD, reset_TB, carry)
        return {"h": Run(x_TBD, (h_TBH,), (carry["h"],))}


def _advance(state: State, sums: Mapping[str, Tensor]) -> State:
    """`nbrc_cell` of each unit."""
    (h,) = state
    x_a, x_c, x_n = sums["input"].unbind(-2)
    s_a, s_c = (h.unsqueeze(-2) * sums["own"] + sums["bias"]).unbind(-2)
    return (next_state(x_a + s_a, x_c + s_c, x_n, h),)
