"""Mamba (Gu & Dao 2023): a selective state space behind a short convolution, as a residual layer.

Axis letters: T time, B environments, D input features, M model features, I inner features, N states of each, W steps
of the convolution's window.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mneme.controllers.controller import Carry, Controller, Step
from mneme.controllers.initialisation import initial_steps, projection, undrawn
from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.precision import wide
from mneme.controllers.scans.blocks import in_blocks
from mneme.controllers.scans.convolution.cell import silu_convolution_cell
from mneme.controllers.scans.convolution.scan import silu_convolution, silu_convolution_step
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters, selective_cell
from mneme.controllers.scans.selective.scan import selective_scan, selective_step
from mneme.controllers.settings import MambaFamily, MambaSettings

_Layer = TypeVar("_Layer", bound=nn.Module)
_Convolve = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_Recur = Callable[[SelectiveInputs, Tensor, SelectiveParameters], tuple[Tensor, Tensor]]


class MambaMixer(nn.Module):
    """The mixer inside a Mamba layer's residual connection; its parameters are those of `mamba_ssm.Mamba`, so that its
    state dict loads.

    Args:
        slowest: the longest time constant at the start, in steps; none for the published start.
    """

    def __init__(
        self, model: int, states: int, expand: int, taps: int, slowest: int | None, generator: Generator
    ) -> None:
        super().__init__()
        inner, rank = expand * model, math.ceil(model / 16)
        self.in_proj = _uniform(undrawn(nn.Linear, model, 2 * inner, bias=False), model, generator)
        convolution = undrawn(nn.Conv1d, inner, inner, taps, groups=inner)
        self.conv1d = _uniform(convolution, taps, generator)
        if slowest is not None:
            nn.init.zeros_(self.conv1d.bias)  # a blank step writes nothing
        self.x_proj = _uniform(undrawn(nn.Linear, inner, rank + 2 * states, bias=False), inner, generator)
        self.dt_proj = _uniform(undrawn(nn.Linear, rank, inner), rank, generator)
        dt_I = initial_steps(inner, slowest is not None, generator)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt_I + torch.log(-torch.expm1(-dt_I)))  # softplus of it is dt
        if slowest is None:
            self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        else:
            log_tau_N = torch.linspace(math.log(slowest), 0, states).flip(0)
            self.A_log = nn.Parameter(-log_tau_N - dt_I.log().unsqueeze(1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = _uniform(undrawn(nn.Linear, inner, model, bias=False), inner, generator)

    def forward(
        self, x: Tensor, window_BWI: Tensor, h_BNI: Tensor, convolve: _Convolve, recur: _Recur
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[..., M], and the carry before -> [..., M], and the carry after."""
        states = self.A_log.shape[1]
        w_u, w_z = self.in_proj.weight.chunk(2)
        u, window_BWI = convolve(F.linear(x, w_u), window_BWI, self.conv1d.weight[:, 0], self.conv1d.bias)
        dt, write, read = self.x_proj(u).split([self.dt_proj.in_features, states, states], -1)
        inputs = SelectiveInputs(u, _thin(dt, self.dt_proj), F.linear(x, w_z), write, read)
        y, h_BNI = recur(inputs, h_BNI, SelectiveParameters(self.A_log, self.D))
        return self.out_proj(y), window_BWI, h_BNI


class MambaController(Controller):
    """y = u + mixer(norm(u)), where u is the input, projected if its width differs from `hidden_size`.

    It carries the `state` [B, N, I] and the convolution's `window` [B, d_conv - 1, I]. Chrono starts each
    channel's states with time constants log-spaced from 1 step to twice the horizon. Without it the start is the
    published one: rates 1 to N times steps of 0.001 to 0.1, so from 0.6 to 1000 steps."""

    settings_class = MambaSettings
    cuts_gradients = True
    mixes_precision = True
    backends = ("triton", "numba", "torch")
    initial_state: Tensor
    initial_window: Tensor

    def __init__(self, input_size: int, settings: MambaFamily, horizon: int, generator: Generator) -> None:
        hidden, states, taps = settings.hidden_size, settings.d_state, settings.d_conv
        inner = settings.expand * hidden
        shapes = {"state": (states, inner), "window": (taps - 1, inner)}
        super().__init__(input_size, hidden, shapes, settings.initial_carry == "learned")
        self.embed = projection(input_size, hidden, generator)
        self.norm = LayerNorm(hidden, bias=False)
        self.mixer = MambaMixer(
            hidden, states, settings.expand, taps, 2 * horizon if settings.chrono else None, generator
        )

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self._layer(x_BD, carry, silu_convolution_cell, selective_cell)

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        backend = self.backend_on(x_TBD.device)

        def steps(x_KBD: Tensor, reset_KB: Tensor, carry: Carry, cut_KB: Tensor | None) -> tuple[Tensor, Carry]:
            return self._layer(
                x_KBD,
                carry,
                lambda u, window, w, b: silu_convolution(
                    u, reset_KB, window, self.initial_window, w, b, backend, cut_KB
                ),
                lambda x, h, p: selective_scan(x, reset_KB, h, self.initial_state, p, backend, cut_KB),
            )

        return in_blocks(steps, x_TBD, reset_TB, carry, cut_TB)

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        backend = self.backend_on(x_BD.device)
        return self._layer(
            x_BD,
            carry,
            lambda u, window, w, b: silu_convolution_step(u, window, w, b, backend),
            lambda x, h, p: (selective_step(x, h, p, backend), h),
        )

    def stepper(self) -> Step:
        if self.backend_on(self.initial_state.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.rows.block import entrance  # here, as numba may be missing
        from mneme.controllers.scans.selective.step import MambaWeights, mamba_step

        m, start = self.mixer, (self.initial_state, self.initial_window)
        u, z = m.in_proj.weight.chunk(2)
        taps, taps_bias, dt = m.conv1d.weight[:, 0], m.conv1d.bias, m.dt_proj
        weights = MambaWeights(u, z, taps, taps_bias, m.x_proj.weight, dt.weight, dt.bias, m.out_proj.weight)
        return mamba_step(entrance(self.embed, self.norm), weights, SelectiveParameters(m.A_log, m.D), *start)

    def _layer(self, x: Tensor, carry: Carry, convolve: _Convolve, recur: _Recur) -> tuple[Tensor, Carry]:
        u = wide(self.embed(x))
        mixed, window_BWI, h_BNI = self.mixer(self.norm(u), carry["window"], carry["state"], convolve, recur)
        return u + mixed, {"state": h_BNI, "window": window_BWI}


def _thin(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer's output, of few inputs: with the weight laid out by them, its gradient takes a sixth as long."""
    return x @ layer.weight.t().contiguous() + layer.bias


def _uniform(layer: _Layer, inputs: int, generator: Generator) -> _Layer:
    """The layer with all parameters uniform in ±1/sqrt(inputs), as torch and mamba_ssm start them."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer
