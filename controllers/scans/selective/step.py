"""One step of many lanes through a layer of Mamba, compiled by numba for acting.

A kernel has the whole layer, and lanes go through it some at a time. The scans are in `scans.selective.numba` and
`scans.convolution.numba`.

Axis letters: B lanes, D input features, M model features, I inner channels, N states a channel, R rank of the steps'
lengths, K taps, W = K - 1.
"""

from typing import Any, NamedTuple

from torch import Tensor

from mneme.controllers.scans.convolution.numba import convolution_step
from mneme.controllers.scans.layer_step import LANES, LayerStep
from mneme.controllers.scans.machine_code import LOG2_E, add, arrays, compiled, copy, in_arrays, kernel, scratch, times
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.rows.block import Entrance, connect, enter
from mneme.controllers.scans.selective.cell import SelectiveParameters
from mneme.controllers.scans.selective.numba import gate, lengths, rates, state_step


class MambaWeights(NamedTuple):
    """Parameters of a layer between its norm and its residual connection."""

    u: Any  # [I, M]
    z: Any  # [I, M]
    taps: Any  # [I, K]
    tap_bias: Any  # [I]
    selection: Any  # [R + 2N, I] to the step's length, write and read
    dt: Any  # [I, R]
    dt_bias: Any  # [I]
    out: Any  # [M, I]


class _Layer(NamedTuple):
    entrance: Entrance
    w: MambaWeights  # matrices in panels
    rate: Any  # [N, I] to the base 2
    skip: Any  # [I]
    state: Any  # [N, I] at the start of an episode
    window: Any  # [W, I] likewise


def mamba_step(
    entrance: Entrance, w: MambaWeights, p: SelectiveParameters, state_NI: Tensor, window_WI: Tensor
) -> LayerStep:
    """The step of a layer that carries `state` [B, N, I] and `window` [B, W, I].

    Args:
        entrance: what stands before the mixer.
        w: parameters of the mixer.
        p: those of its recurrence.
        state_NI: at the start of an episode.
        window_WI: likewise.
    """
    own, (rate, skip, state, window) = in_arrays(w), arrays(LOG2_E * rates(p), p.skip, state_NI, window_WI)
    in_panels = {name: panels(getattr(own, name).T) for name in ("u", "z", "selection", "dt", "out")}
    (I, M), S = w.u.shape, len(w.selection)
    model, inner, selected = (padded(size, state.dtype) for size in (M, I, S))
    room = scratch(
        state_NI, *((LANES, size) for size in (model, M, inner, inner, I, selected, inner, I, model)),
        (M,), (I,), (I,), (I,), (I,),
    )  # fmt: skip
    layer = _Layer(entrance, own._replace(taps=own.taps.T.copy(), **in_panels), rate, skip, state, window)
    return LayerStep(_mamba, layer, ("state", "window"), state_NI, M, room)


@kernel
def _mamba(x, reset, layer, h, window, y, room):
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        _lanes(x[start:stop], reset[start:stop], layer, h[start:stop], window[start:stop], y[start:stop], room)


@compiled
def _lanes(x, reset, layer, h, window, y, room):
    stream, normed, u, z, seen, selected, dt, mixed, out, n, total, length, written, read = room
    (B, N, I), M, w = h.shape, y.shape[1], layer.w
    R = w.dt.shape[1]
    enter(x, layer.entrance, stream, n, normed)
    multiply(normed[:B], 0, M, w.u, 0, len(w.u), u, 0, False)
    multiply(normed[:B], 0, M, w.z, 0, len(w.z), z, 0, False)
    for b in range(B):
        if reset[b]:
            copy(h[b], layer.state)
            copy(window[b], layer.window)
        convolution_step(u[b], window[b], w.taps, w.tap_bias, total, seen[b])
    multiply(seen[:B], 0, I, w.selection, 0, len(w.selection), selected, 0, False)
    multiply(selected[:B], 0, R, w.dt, 0, len(w.dt), dt, 0, False)
    for b in range(B):
        add(dt[b, :I], w.dt_bias)
        lengths(dt[b, :I], seen[b], length, written)
        copy(read, layer.skip)
        times(read, seen[b])
        for state in range(N):
            write, weight = selected[b, R + state], selected[b, R + N + state]
            state_step(h[b, state], layer.rate[state], length, written, write, weight, read)
        gate(read, z[b], mixed[b])
    connect(stream, mixed[:B], w.out, out, y)
