"""The recurrence of Mamba and Mamba-2 inside compiled kernels: a lane's states through a block of steps, and back.

    h' = decay h + w written      y = r h'

A step has a `decay` for each channel [I]; or, where there is a `rate` [N, I], a length for each, and each state decays
by 2^(rate length).

Axis letters: K steps of a block, N states a channel, I channels, R rows and W width of a tile, X, Y the states with
one tile's rows below those of another.
"""

from torch import Tensor

from mneme.controllers.scans.compiled import compiled, exp2
from mneme.controllers.scans.tiles import (
    TileShape,
    add_up,
    load,
    load_column,
    load_row,
    store,
    sum_of_rows,
    total,
    zeros,
)

STEPS = 8
"""Backward, states are computed again from those before each so many steps: what is kept is an eighth of them."""


def blocks_of_states(h_BNI: Tensor, steps: int, tiles: TileShape) -> Tensor:
    """Room for all lanes' states before each of the blocks that cover `steps`: [blocks, B, X, Y]."""
    B, N, I = h_BNI.shape
    return h_BNI.new_empty(-(-steps // STEPS), B, N * I // tiles.width, tiles.width)


@compiled
def recur(initial, resets, steps, rate, decay, written, wr, entered, y, before, h, tiles):
    """Add to y [K, I] what is read, and fill h [N, I] with the last states.

    Args:
        initial: [N, I], what a lane has from a reset on.
        resets: of each step.
        steps: at most K.
        rate: or none.
        decay: [K, I], or lengths.
        written: [K, I].
        wr: w and r side by side, [K, 2 N].
        entered: the states before, [N, I], which may be h itself.
        before: [X, Y] for a copy of them in the order in which `recur_back` wants them, or nothing.
    """
    (N, I), place = h.shape, 0
    for i in range(0, I, tiles.width):
        for n in range(0, N, tiles.rows):
            state = load(entered, n, i, tiles)
            if rate is not None:
                rates = load(rate, n, i, tiles)
            if len(before) > 0:
                store(before, place, 0, state)
                place += tiles.rows
            for k in range(steps):
                if resets[k]:
                    state = load(initial, n, i, tiles)
                new = load_column(wr, k, n, tiles) * load_row(written, k, i, tiles)
                if rate is None:
                    state = load_row(decay, k, i, tiles) * state + new
                else:
                    state = exp2(rates * load_row(decay, k, i, tiles)) * state + new
                read = sum_of_rows(load_column(wr, k, N + n, tiles) * state)
                store(y, k, i, load_row(y, k, i, tiles) + read)
            store(h, n, i, state)


@compiled
def recur_back(
    initial, resets, steps, rate, decay, written, wr, before, dy, shared, factors, left, parts,
    dh, dinitial, ddecay, drate, dwritten, dwr, tiles,
):  # fmt: skip
    """The same states again, then the slopes dh [N, I] from after the block to before it.

    Of products summed over channels, with dh' what later steps make of h''s slope and `shared` = dy . written,
    dr = dy . (decay h) + w shared and dw = dh' . written + r shared.

    Args:
        shared: [K].
        factors: scratch for a tile's decays, [K, R, W], if there is a rate.
        left: scratch for decay h, [K, R, W].
        parts: scratch for partial sums, [K, 2 N, tiles.folded].
        dinitial: is added to.
        ddecay: the slopes of the decays' logarithms, summed over states, [K, I]; of lengths they lack the factor ln 2.
        drate: has slope times length added, or is none.
    """
    (N, I), place = dh.shape, 0
    parts[:] = dh.dtype.type(0)
    for i in range(0, I, tiles.width):
        for n in range(0, N, tiles.rows):
            state = load(before, place, 0, tiles)
            place += tiles.rows
            if rate is not None:
                rates, of_rates = load(rate, n, i, tiles), load(drate, n, i, tiles)
            for k in range(steps):
                if resets[k]:
                    state = load(initial, n, i, tiles)
                if rate is None:
                    state = load_row(decay, k, i, tiles) * state
                else:
                    factor = exp2(rates * load_row(decay, k, i, tiles))
                    store(factors[k], 0, 0, factor)
                    state = factor * state
                store(left[k], 0, 0, state)
                state = state + load_column(wr, k, n, tiles) * load_row(written, k, i, tiles)
            slope = load(dh, n, i, tiles)
            for k in range(steps - 1, -1, -1):
                dy_k, left_k = load_row(dy, k, i, tiles), load(left[k], 0, 0, tiles)
                add_up(parts[k], n, slope * load_row(written, k, i, tiles))
                add_up(parts[k], N + n, dy_k * left_k)
                slope = slope + load_column(wr, k, N + n, tiles) * dy_k
                of_log, of_written = slope * left_k, sum_of_rows(slope * load_column(wr, k, n, tiles))
                if rate is None:
                    of_decay = sum_of_rows(of_log)
                    slope = slope * load_row(decay, k, i, tiles)
                else:
                    of_decay = sum_of_rows(of_log * rates)
                    of_rates = of_rates + of_log * load_row(decay, k, i, tiles)
                    slope = slope * load(factors[k], 0, 0, tiles)
                if n > 0:
                    of_decay = of_decay + load_row(ddecay, k, i, tiles)
                    of_written = of_written + load_row(dwritten, k, i, tiles)
                store(ddecay, k, i, of_decay)
                store(dwritten, k, i, of_written)
                if resets[k]:
                    store(dinitial, n, i, load(dinitial, n, i, tiles) + slope)
                    slope = zeros(dh.dtype, tiles)
            store(dh, n, i, slope)
            if rate is not None:
                store(drate, n, i, of_rates)
    for k in range(steps):
        for n in range(N):
            dwr[k, n] = total(parts[k], n, tiles) + wr[k, N + n] * shared[k]
            dwr[k, N + n] = total(parts[k], N + n, tiles) + wr[k, n] * shared[k]
