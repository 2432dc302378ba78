"""Linear recurrent unit (Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences").

    h' = lambda h + gamma (B u)      y = Re(C h) + D u      lambda = exp(-exp(nu) + i exp(theta))

h is complex and lambda diagonal and constant, so |lambda| < 1 whatever nu and theta become.

Axis letters: T time, B environments, H hidden, N complex states, 2N their real and imaginary parts, which alternate.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry
from mneme.controllers.initialisation import chrono_bias
from mneme.controllers.precision import wide
from mneme.controllers.residual_block import ResidualBlock
from mneme.controllers.scans.linear.scan import linear_scan
from mneme.controllers.settings import LruSettings


class LruController(ResidualBlock):
    """An LRU in its residual block; it carries `h` [B, N, 2], real and imaginary parts.

    Chrono starts |lambda| as sigmoid(chrono bias): time constants of 1 to horizon - 1 steps, |lambda| < 1 - 1/horizon.
    Without it |lambda|^2 is uniform in [0, 1), the paper's ring."""

    settings_class = LruSettings
    mixes_precision = True
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
        h_BN = self.eigenvalues() * _complex(carry["h"]) + self._drive(u_BH)
        return self._read(h_BN, u_BH), {"h": torch.view_as_real(h_BN)}

    def mixer_scan(
        self, u_TBH: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        h_BN, initial_N = _complex(carry["h"]), torch.view_as_complex(self.initial_h)
        h_TBN, h_BN = linear_scan(self.eigenvalues(), self._drive(u_TBH), reset_TB, h_BN, initial_N, cut_TB=cut_TB)
        return self._read(h_TBN, u_TBH), {"h": torch.view_as_real(h_BN)}

    def _drive(self, u: Tensor) -> Tensor:
        """gamma (B u): [..., H] -> complex [..., N]."""
        weight = self.weight_in * torch.exp(self.log_gamma).repeat_interleave(2).unsqueeze(1)
        return torch.view_as_complex(wide(F.linear(u, weight)).unflatten(-1, (-1, 2)))

    def _read(self, h: Tensor, u: Tensor) -> Tensor:
        """Re(C h) + D u: complex [..., N], [..., H] -> [..., H]."""
        return torch.addcmul(F.linear(torch.view_as_real(h).flatten(-2), self.weight_out), self.skip, u)


def _complex(parts: Tensor) -> Tensor:
    """[..., 2], wherever its numbers lie -> complex [...]."""
    return torch.complex(parts[..., 0], parts[..., 1])


def _orthogonal(rows: int, columns: int, generator: Generator) -> nn.Parameter:
    return nn.Parameter(nn.init.orthogonal_(torch.empty(rows, columns), generator=generator))


def _uniform(size: int, generator: Generator) -> Tensor:
    """Within (0, 1), so that neither the logarithm nor that of the logarithm is infinite."""
    return torch.empty(size).uniform_(1e-6, 1 - 1e-6, generator=generator)
