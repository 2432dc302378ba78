"""Mamba-2 (Dao & Gu 2024): a selective state space whose scan is a matrix product, as a residual layer.

Axis letters: T time, B environments, D input features, M model features, C convolved channels (x, B and C side by
side), I inner features, H heads, P head size, N state size.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

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
from mneme.controllers.scans.gated_norm.norm import gated_norm
from mneme.controllers.scans.ssd.cell import ssd_cell
from mneme.controllers.scans.ssd.mamba_ssm import rounds_as_allowed
from mneme.controllers.scans.ssd.scan import ssd_scan, ssd_step
from mneme.controllers.settings import Mamba2Family, Mamba2Settings

NORM_EPS = 1e-5
"""As in mamba_ssm."""

_Convolve = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
_Recur = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Mamba2Sizes(NamedTuple):
    """The widths of a layer."""

    inner: int  # I = H P
    heads: int  # H
    head: int  # P
    state: int  # N
    taps: int  # of the convolution


def mamba2_sizes(settings: Mamba2Family) -> Mamba2Sizes:
    """The widths that the settings choose."""
    inner = settings.expand * settings.hidden_size
    head = settings.headdim or math.gcd(inner, 32)
    return Mamba2Sizes(inner, inner // head, head, settings.d_state, settings.d_conv)


class Mamba2Mixer(nn.Module):
    """The mixer inside a Mamba-2 layer's residual connection; its parameters are those of `mamba_ssm.Mamba2` with one
    group, so that its state dict loads.

    Args:
        horizon: steps to remember over, half the longest time constant at the start; none for the published start.
    """

    def __init__(self, model: int, sizes: Mamba2Sizes, horizon: int | None, generator: Generator) -> None:
        super().__init__()
        self.sizes = sizes
        inner, heads, _, state, taps = sizes
        self.channels = inner + 2 * state
        self.in_proj = _projection(model, inner + self.channels + heads, generator)
        self.conv1d = undrawn(nn.Conv1d, self.channels, self.channels, taps, groups=self.channels)
        for parameter in self.conv1d.parameters():
            nn.init.uniform_(parameter, -(taps**-0.5), taps**-0.5, generator=generator)
        rate_H = torch.empty(heads).uniform_(1, 16, generator=generator)
        dt_H = initial_steps(heads, horizon is not None, generator)
        if horizon is not None:
            nn.init.zeros_(self.conv1d.bias)  # a blank step writes nothing
            rate_H = 1 / (torch.linspace(2 * horizon, 1, heads).flip(0) * dt_H)
        self.dt_bias = nn.Parameter(dt_H + torch.log(-torch.expm1(-dt_H)))  # softplus of it is dt
        self.A_log = nn.Parameter(rate_H.log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner)  # holds the weight of the gated norm
        self.out_proj = _projection(inner, model, generator)

    def forward(
        self, u: Tensor, carry: Carry, convolve: _Convolve, recur: _Recur, backend: str = "torch"
    ) -> tuple[Tensor, Carry]:
        """[..., M] -> [..., M], over one step or over all, as `convolve` and `recur` are."""
        z, xbc, dt = (F.linear(u, weight) for weight in self.in_weights())
        xbc, window_BWC = convolve(xbc, carry["window"], self.conv1d.weight[:, 0], self.conv1d.bias)
        y, h_BNI = recur(xbc, F.softplus(dt + self.dt_bias), carry["state"], -self.A_log.exp(), self.D)
        y = gated_norm(y, z, self.norm.weight, NORM_EPS, backend)
        return self.out_proj(y), {"state": h_BNI, "window": window_BWC}

    def in_weights(self) -> tuple[Tensor, ...]:
        """The weights of the gate z [I, M], of x, B and C [C, M], and of dt [H, M]."""
        return self.in_proj.weight.split([self.sizes.inner, self.channels, self.sizes.heads])


class Mamba2Controller(Controller):
    """y = u + mixer(norm(u)), where u is the input, projected if its width differs from `hidden_size`.

    It carries the `state` [B, N, I] and the convolution's `window` [B, d_conv - 1, C]. Chrono spaces the heads'
    time constants at the start evenly from one step to twice the horizon, and lets blank steps write nothing; without
    it they are the published ones, of 0.6 to 1000 steps."""

    settings_class = Mamba2Settings
    cuts_gradients = True
    mixes_precision = True
    backends = ("mamba_ssm", "numba", "torch")
    initial_state: Tensor
    initial_window: Tensor

    def __init__(self, input_size: int, settings: Mamba2Family, horizon: int, generator: Generator) -> None:
        hidden, sizes = settings.hidden_size, mamba2_sizes(settings)
        channels = sizes.inner + 2 * sizes.state
        shapes = {"state": (sizes.state, sizes.inner), "window": (sizes.taps - 1, channels)}
        super().__init__(input_size, hidden, shapes, settings.initial_carry == "learned")
        self.chunk_size = settings.chunk_size
        self.embed = projection(input_size, hidden, generator)
        self.norm = LayerNorm(hidden, bias=False)
        self.mixer = Mamba2Mixer(hidden, sizes, horizon if settings.chrono else None, generator)

    def cell(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        return self._layer(x_BD, carry, silu_convolution_cell, ssd_cell)

    def backend_on(self, device: torch.device) -> str:
        """As chosen, but torch where mamba_ssm's kernels are not exact, of which `scans.ssd.mamba_ssm` has the list."""
        chosen, dtype = super().backend_on(device), self.initial_state.dtype
        if chosen != "mamba_ssm":
            return chosen
        forced = self.backend == chosen and dtype != torch.float64
        learned = isinstance(self.initial_state, nn.Parameter)
        return chosen if not learned and (forced or rounds_as_allowed(dtype)) else "torch"

    def fast_scan(
        self, x_TBD: Tensor, reset_TB: Tensor, carry: Carry, cut_TB: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        backend = self.backend_on(x_TBD.device)

        def steps(x_KBD: Tensor, reset_KB: Tensor, carry: Carry, cut_KB: Tensor | None) -> tuple[Tensor, Carry]:
            return self._layer(
                x_KBD,
                carry,
                lambda x, window, w, b: silu_convolution(
                    x, reset_KB, window, self.initial_window, w, b, backend, cut_KB
                ),
                lambda xbc, dt, h, a, d: ssd_scan(
                    xbc, dt, reset_KB, h, self.initial_state, a, d, self.chunk_size, backend, cut_KB
                ),
                backend,
            )

        return in_blocks(steps, x_TBD, reset_TB, carry, cut_TB)

    def fast_step(self, x_BD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        backend = self.backend_on(x_BD.device)
        return self._layer(
            x_BD,
            carry,
            lambda x, window, w, b: silu_convolution_step(x, window, w, b, backend),
            lambda x, dt, h, a, d: (ssd_step(x, dt, h, a, d, backend), h),
            backend,
        )

    def stepper(self) -> Step:
        if self.backend_on(self.initial_state.device) != "numba":
            return super().stepper()
        from mneme.controllers.scans.rows.block import entrance  # here, as numba may be missing
        from mneme.controllers.scans.ssd.numba import SsdParameters
        from mneme.controllers.scans.ssd.step import Mamba2Weights, mamba2_step

        m = self.mixer
        z, xbc, dt = m.in_weights()
        taps, taps_bias, out = m.conv1d.weight[:, 0], m.conv1d.bias, m.out_proj.weight
        weights = Mamba2Weights(z, xbc, dt, taps, taps_bias, m.dt_bias, m.norm.weight, out)
        recurrence, start = SsdParameters(-m.A_log.exp(), m.D), (self.initial_state, self.initial_window)
        return mamba2_step(entrance(self.embed, self.norm), weights, recurrence, *start, NORM_EPS)

    def _layer(
        self, x: Tensor, carry: Carry, convolve: _Convolve, recur: _Recur, backend: str = "torch"
    ) -> tuple[Tensor, Carry]:
        u = wide(self.embed(x))
        mixed, carry = self.mixer(self.norm(u), carry, convolve, recur, backend)
        return u + mixed, carry


def _projection(inputs: int, outputs: int, generator: Generator) -> nn.Linear:
    """A layer without bias, uniform in ±1/sqrt(inputs), as `nn.Linear` starts."""
    layer = undrawn(nn.Linear, inputs, outputs, bias=False)
    nn.init.uniform_(layer.weight, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer
