"""Linear recurrent unit (Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences").

    h' = lambda h + gamma (B u)      y = Re(C h) + D u      lambda = exp(-exp(nu) + i exp(theta))

h is complex and lambda diagonal and constant, so |lambda| < 1 whatever nu and theta become.

Axis letters: T time, B environments, H hidden, N complex states, 2N their real and imaginary parts, which alternate.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Step
from mneme.controllers.initialisation import chrono_bias
from mneme.controllers.precision import wide
from mneme.controllers.residual_block import ResidualBlock
from mneme.controllers.scans.linear.scan import linear_scan
from mneme.controllers.settings import LruSettings
from mneme.controllers.traces import Elementwise, Run, State


class LruController(ResidualBlock):
    """An LRU in its residual block; it carries `h` [B, N, 2], real and imaginary parts.

    Chrono starts |lambda| as sigmoid(chrono bias): time constants of 1 to horizon - 1 steps, |lambda| < 1 - 1/horizon.
    Without it |lambda|^2 is uniform in [0, 1), the paper's ring."""

    settings_class = LruSettings
    mixes_precision = True
    backends = ("numba", "torch")
    initial_h: Tensor

    def __init__(self, input_size: int, settings: LruSettings, horizon: int, generator: Generator) -> None:
        hidden = settings.hidden_size
        states = settings.d_state or hidden
        super().__init__(input_size, settings, {"h": (states, 2)}, generator, mixed_size=hidden)
        if settings.chrono:
            decay_N = F.softplus(-chrono_bias(states, horizon, generator))
        else:
            decay_N = -0.5 * _uniform(states, generator).log()
        self.log_decay = nn.Parameter(decay_N.log())
        self.log_phase = nn.Parameter((settings.max_phase * _uniform(states, generator)).log())
        self.log_gamma = nn.Parameter(0.5 * torch.log(-torch.expm1(-2 * decay_N)))
        self.weight_in = _orthogonal(2 * states, hidden, generator)
        self.weight_out = _orthogonal(hidden, 2 * states, generator)
        self.skip = nn.Parameter(torch.empty(hidden).normal_(generator=generator))

    def eigenvalues(self) -> Tensor:
        """lambda, complex [N]."""
        return torch.polar(torch.exp(-torch.exp(self.log_decay)), torch.exp(self.log_phase))

    def mixer_cell(self, u_BH: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        h_BN = self.eigenvalues() * _complex(carry["h"]) + _joined(self._drive(u_BH))
        return self._read(_parted(h_BN), u_BH), {"h": torch.view_as_real(h_BN)}

    def mixer_scan(
        self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        h_TBM, h_BN2 = self._states(u_TBH, reset_TB, carry, cut_TB)
        return self._read(h_TBM, u_TBH), {"h": h_BN2}

    def _states(
        self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states after each step [T, B, 2N], real parts, then imaginary ones, and after the last [B, N, 2]."""
        if self.backend_on(u_TBH.device) == "numba":
            return self._compiled_scan(u_TBH, reset_TB, carry["h"], cut_TB)
        h_BN, initial_N = _complex(carry["h"]), torch.view_as_complex(self.initial_h)
        h_TBN, h_BN = linear_scan(
            self.eigenvalues(), _joined(self._drive(u_TBH)), reset_TB, h_BN, initial_N, cut_TB=cut_TB
        )
        return _parted(h_TBN), torch.view_as_real(h_BN)

    def _compiled_scan(
        self, u_TBH: Tensor, reset_TB: Tensor, h_BN2: Tensor, cut_TB: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from mneme.controllers.scans.linear.numba import numba_constant_scan  # here, as numba may be missing

        a_2N, h_BM, initial_M = (
            x.mT.flatten(-2) for x in (torch.view_as_real(self.eigenvalues()), h_BN2, self.initial_h)
        )
        h_TBM, h_BM = numba_constant_scan(
            a_2N.unflatten(0, (2, -1)), self._drive(u_TBH), reset_TB, h_BM, initial_M, cut_TB
        )
        return h_TBM, h_BM.unflatten(1, (2, -1)).mT.contiguous()

    def elementwise(self) -> dict[str, Elementwise]:
        eigenvalues_2N = torch.view_as_real(self.eigenvalues()).t()
        parameters = {"drive": self._gained(), "eigenvalues": eigenvalues_2N}
        return {"h": Elementwise(parameters, _advance, self.initial_h.unbind(-1))}

    def mixer_runs(self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry) -> dict[str, Run]:
        h_TBM, _ = self._states(u_TBH, reset_TB, carry)
        return {"h": Run(u_TBH, h_TBM.chunk(2, -1), carry["h"].unbind(-1))}

    def _gained(self) -> Tensor:
        """gamma B: [2, N, H], real parts and imaginary ones."""
        return (self.weight_in.unflatten(0, (-1, 2)) * torch.exp(self.log_gamma)[:, None, None]).transpose(0, 1)

    def stepper(self) -> Step:
        if self.backend_on(self.initial_h.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.linear.step import constant_block_step  # here, as numba may be missing
        from mneme.controllers.scans.rows.block import block

        weights = self._drive_weight(), torch.view_as_real(self.eigenvalues()).mT, self._read_weight()
        return constant_block_step(block(self.project, self.norm, self.mix), *weights, self.skip, self.initial_h)

    def _drive(self, u: Tensor) -> Tensor:
        """gamma (B u): [..., H] -> [..., 2N], real parts, then imaginary ones."""
        return wide(F.linear(u, self._drive_weight()))

    def _drive_weight(self) -> Tensor:
        """gamma B, [2N, H]."""
        return self._gained().flatten(0, 1)

    def _read(self, h: Tensor, u: Tensor) -> Tensor:
        """Re(C h) + D u: [..., 2N], real parts, then imaginary ones, and [..., H] -> [..., H]."""
        return torch.addcmul(F.linear(h, self._read_weight()), self.skip, u)

    def _read_weight(self) -> Tensor:
        """C for real parts, then for imaginary ones, [H, 2N]."""
        return self.weight_out.unflatten(1, (-1, 2)).mT.flatten(1)


def _advance(state: State, sums: Mapping[str, Tensor]) -> State:
    """lambda h + gamma (B u), in real numbers."""
    (h_re, h_im), (a_re, a_im) = state, sums["eigenvalues"].unbind(-2)
    b_re, b_im = sums["drive"].unbind(-2)
    return a_re * h_re - a_im * h_im + b_re, a_re * h_im + a_im * h_re + b_im


def _complex(parts: Tensor) -> Tensor:
    """[..., 2], wherever its numbers lie -> complex [...]."""
    return torch.complex(parts[..., 0], parts[..., 1])


def _joined(parts: Tensor) -> Tensor:
    """[..., 2N], real parts, then imaginary ones -> complex [..., N]."""
    return torch.complex(*parts.chunk(2, -1))


def _parted(h: Tensor) -> Tensor:
    """The reverse."""
    return torch.cat([h.real, h.imag], -1)


def _orthogonal(rows: int, columns: int, generator: Generator) -> nn.Parameter:
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns), generator=generator))


def _uniform(size: int, generator: Generator) -> Tensor:
    """Within (0, 1), so that neither the logarithm nor that of the logarithm is infinite."""
    return torch.empty(size).uniform_(1e-6, 1 - 1e-6, generator=generator)
