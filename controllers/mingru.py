"""Minimal gated recurrent unit (Feng et al. 2024, "Were RNNs all we needed?", section 3.1).

    h' = (1 - z) h + z n          z = sigmoid(W_z u + b_z)          n = W_n u + b_n

Gates and candidate see the input alone, so the state is a diagonal linear recurrence and its scan one over real
numbers. The paper's positive candidate serves its log-space scan; here nothing is computed in log space, 0 <= z <= 1
keeps the state among the candidates that it has seen, and a plain candidate lets a blank observation write nothing.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from mneme.controllers.controller import Carry, Step
from mneme.controllers.initialisation import chrono_bias, linear
from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.precision import gates
from mneme.controllers.residual_block import ResidualBlock
from mneme.controllers.scans.linear.scan import linear_scan
from mneme.controllers.scans.rows.layers import normed
from mneme.controllers.settings import MinGruSettings
from mneme.controllers.traces import Elementwise, Run, State


class MinGruController(ResidualBlock):
    """A minGRU in a residual block; it carries `h` [B, H].

    Chrono starts 1 - z as a GRU's z starts: time constants of 1 to horizon - 1 steps. What such gates write is as
    weak as it is lasting, so the block reads LayerNorm(h).
    """

    settings_class = MinGruSettings
    mixes_precision = True
    backends = ("triton", "numba", "torch")
    initial_h: Tensor

    def __init__(self, input_size: int, settings: MinGruSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        super().__init__(input_size, settings, {"h": (hidden,)}, generator, mixed_size=hidden)
        self.gates = linear(hidden, 2 * hidden, 1.0, generator)  # of 1 - z, and n
        if settings.chrono:
            with torch.no_grad():
                self.gates.bias[:hidden] = chrono_bias(hidden, horizon, generator)
        self.state_norm = LayerNorm(hidden)

    def mixer_cell(self, u_BH: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BH = _next_state(self.gates(u_BH).unflatten(-1, (2, -1)), carry["h"])
        return self.state_norm(h_BH), {"h": h_BH}

    def mixer_scan(
        self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        h_TBH, h_BH = self._states(u_TBH, reset_TB, carry, cut_TB)
        return normed(h_TBH, self.state_norm, self.backend_on(u_TBH.device)), {"h": h_BH}

    def _states(
        self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states after each step, and after the last."""
        kn_TBM, backend = gates(self.gates, u_TBH), self.backend_on(u_TBH.device)
        if backend == "numba":
            from mneme.controllers.scans.linear.numba import numba_gated_scan  # here, as numba may be missing

            return numba_gated_scan(kn_TBM, reset_TB, carry["h"], self.initial_h, cut_TB)
        k, n = kn_TBM.chunk(2, -1)
        keep = torch.sigmoid(k)
        written = torch.addcmul(n, keep, n, value=-1)
        return linear_scan(keep, written, reset_TB, carry["h"], self.initial_h, backend, cut_TB)

    def stepper(self) -> Step:
        if self.backend_on(self.initial_h.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.linear.step import gated_block_step  # here, as numba may be missing
        from mneme.controllers.scans.rows.block import block

        around = block(self.project, self.norm, self.mix)
        return gated_block_step(around, self.gates, self.state_norm, self.initial_h)

    def elementwise(self) -> dict[str, Elementwise]:
        parameters = {"gates": self.gates.weight, "bias": self.gates.bias}
        pairs = {name: p.unflatten(0, (2, -1)) for name, p in parameters.items()}
        return {"h": Elementwise(pairs, _advance, (self.initial_h,))}

    def mixer_runs(self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        h_TBH, _ = self._states(u_TBH, reset_TB, carry)
        return {"h": Run(u_TBH, (h_TBH,), (carry["h"],))}


def _next_state(kn: Tensor, h: Tensor) -> Tensor:
    k, n = kn.unbind(-2)
    keep = torch.sigmoid(k)
    return keep * h + (1 - keep) * n


def _advance(state: State, sums: Mapping[str, Tensor]) -> State:
    return (_next_state(sums["gates"] + sums["bias"], *state),)
