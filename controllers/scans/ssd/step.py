"""One step of many lanes through a layer of Mamba-2, compiled by numba for acting.

A kernel has the whole layer, and lanes go through it some at a time. The scans are in `scans.ssd.numba`,
`scans.convolution.numba` and `scans.gated_norm.numba`.

Axis letters: B lanes, D input features, M model features, C = I + 2 N convolved channels, H heads of size P, I inner
features, N state size, K taps, W = K - 1.
"""

from typing import Any, NamedTuple

from torch import Tensor

from mneme.controllers.scans.convolution.numba import convolution_step
from mneme.controllers.scans.gated_norm.numba import gated_norm_row
from mneme.controllers.scans.layer_step import LANES, LayerStep
from mneme.controllers.scans.machine_code import arrays, compiled, copy, in_arrays, kernel, scratch, softplus
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.rows.block import Entrance, connect, enter
from mneme.controllers.scans.ssd.numba import SsdParameters, decay_and_written, skip_heads, state_step


class Mamba2Weights(NamedTuple):
    """Parameters of a layer between its norm and its residual connection."""

    z: Any  # [I, M]
    xbc: Any  # [C, M]
    dt: Any  # [H, M]
    taps: Any  # [C, K]
    tap_bias: Any  # [C]
    dt_bias: Any  # [H]
    gain: Any  # [I] of the gated norm
    out: Any  # [M, I]


class _Layer(NamedTuple):
    entrance: Entrance
    w: Mamba2Weights  # matrices in panels
    p: SsdParameters
    state: Any  # [N, I] at the start of an episode
    window: Any  # [W, C] likewise
    eps: float  # of the gated norm


def mamba2_step(
    entrance: Entrance, w: Mamba2Weights, p: SsdParameters, state_NI: Tensor, window_WC: Tensor, eps: float
) -> LayerStep:
    """The step of a layer that carries `state` [B, N, I] and `window` [B, W, C].

    Args:
        entrance: what stands before the mixer.
        w: parameters of the mixer.
        p: those of its recurrence.
        state_NI: at the start of an episode.
        window_WC: likewise.
        eps: of the gated norm.
    """
    own, (state, window) = in_arrays(w), arrays(state_NI, window_WC)
    in_panels = {name: panels(getattr(own, name).T) for name in ("z", "xbc", "dt", "out")}
    (I, M), C, H = w.z.shape, len(w.tap_bias), len(w.dt_bias)
    model, inner, channels, heads = (padded(size, state.dtype) for size in (M, I, C, H))
    room = scratch(
        state_NI, *((LANES, size) for size in (model, M, inner, channels, heads, I, model)),
        (M,), (C,), (C,), (H, I // H), (H, I // H), (I,),
    )  # fmt: skip
    laid_out = own._replace(taps=own.taps.T.copy(), **in_panels)
    layer = _Layer(entrance, laid_out, in_arrays(p), state, window, eps)
    return LayerStep(_mamba2, layer, ("state", "window"), state_NI, M, room)


@kernel
def _mamba2(x, reset, layer, h, window, y, room):
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        _lanes(x[start:stop], reset[start:stop], layer, h[start:stop], window[start:stop], y[start:stop], room)


@compiled
def _lanes(x, reset, layer, h, window, y, room):
    stream, u, z, xbc, dt, mixed, out, n, total, seen, decay, written, read = room
    (B, N, I), M, H, w = h.shape, y.shape[1], len(decay), layer.w
    enter(x, layer.entrance, stream, n, u)
    multiply(u[:B], 0, M, w.z, 0, len(w.z), z, 0, False)
    multiply(u[:B], 0, M, w.xbc, 0, len(w.xbc), xbc, 0, False)
    multiply(u[:B], 0, M, w.dt, 0, len(w.dt), dt, 0, False)
    for b in range(B):
        if reset[b]:
            copy(h[b], layer.state)
            copy(window[b], layer.window)
        convolution_step(xbc[b], window[b], w.taps, w.tap_bias, total, seen)
        for head in range(H):
            dt[b, head] = softplus(dt[b, head] + w.dt_bias[head])
        decay_and_written(seen, dt[b], layer.p.a, decay, written)
        skip_heads(seen, layer.p.skip, read)
        for state in range(N):
            state_step(h[b, state], decay.reshape(-1), written.reshape(-1), seen[I + state], seen[I + N + state], read)
        gated_norm_row(read, z[b], w.gain, layer.eps, mixed[b])
    connect(stream, mixed[:B], w.out, out, y)
