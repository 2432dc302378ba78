"""The causal depthwise convolution of `scans.convolution` inside compiled kernels: a step, and back.

A tap of age j sees the input j steps ago; where fewer steps lie behind, the incoming window, or after a reset the
initial one. The inputs x are C neighbours among the features of a row, the first of them number `first`.

Places in a row are unsigned: for a signed sum the compiler allows that it counts from the row's end, and fetches number
by number.

Axis letters: T time, B lanes, F features of a row, C channels, K taps, W = K - 1 steps of a window, oldest first.
"""

import numpy as np

from mneme.controllers.scans.compiled import allocating, compiled, copy

LANES = 16
"""Lanes that lie side by side and are worked on together: what they need of memory is read in long runs."""


@allocating
def since_reset(reset, W):
    """Steps since the last reset of each lane, [T, B]; where there was none, more than anyone looks back."""
    T, B = reset.shape
    since = np.empty((T, B), np.int64)
    for b in range(B):
        steps = T + W
        for t in range(T):
            steps = 0 if reset[t, b] else steps + 1
            since[t, b] = steps
    return since


@compiled
def _add(total, x, y):
    for c in range(len(total)):
        total[c] += x[c] * y[c]


@compiled
def _add_seen(total, factor, rows, first, window, initial, t, b, age, since):
    """Add to total [C], times factor [C], what lies `age` steps before step t of a lane, `since` after a reset."""
    if age > since:
        _add(total, factor, initial[len(initial) + since - age])
    elif age > t:
        _add(total, factor, window[b, window.shape[1] + t - age])
    else:
        _add(total, factor, rows[t - age, b, first : first + len(total)])


@compiled
def convolve(rows, first, window, initial, taps, bias, t, b, since, out):
    """One step of lane b: [C]. The weight is laid out by taps, [K, C]."""
    W, channels, begin = len(initial), np.uint64(len(bias)), np.uint64(first)
    if W == 3 and t >= W and since >= W:  # four taps, as ever: at one go, in half the time
        for c in range(channels):
            out[c] = (
                bias[c]
                + taps[3, c] * rows[t, b, begin + c]
                + taps[2, c] * rows[t - 1, b, begin + c]
                + taps[1, c] * rows[t - 2, b, begin + c]
                + taps[0, c] * rows[t - 3, b, begin + c]
            )
        return
    if W == 3 and t == 0 and since >= W:
        for c in range(channels):
            out[c] = (
                bias[c]
                + taps[3, c] * rows[0, b, begin + c]
                + taps[2, c] * window[b, 2, c]
                + taps[1, c] * window[b, 1, c]
                + taps[0, c] * window[b, 0, c]
            )
        return
    copy(out, bias)
    for age in range(W + 1):
        _add_seen(out, taps[W - age], rows, first, window, initial, t, b, age, since)


@compiled
def convolve_block(rows, first, window, initial, taps, bias, start, steps, group, lanes, since, out):
    """The steps of a block of lanes that lie side by side: [lanes, steps, C]. `since` is as `since_reset` gives it."""
    for k in range(steps):
        for lane in range(lanes):
            t, b = start + k, group + lane
            convolve(rows, first, window, initial, taps, bias, t, b, since[t, b], out[lane, k])


@compiled
def last_windows(rows, first, window, initial, since, last):
    """Fill the windows after the last step, [B, W, C]; `since` [B] is that step's."""
    (T, B, _), W = rows.shape, len(initial)
    for b in range(B):
        for w in range(W):
            age, since_b = W - w, since[b] + 1
            if age > since_b:
                copy(last[b, w], initial[W + since_b - age])
            elif age > T:
                copy(last[b, w], window[b, W + T - age])
            else:
                copy(last[b, w], rows[T - age, b, first : first + initial.shape[1]])


@compiled
def unconvolve(
    rows, first, window, initial, taps, since, start, steps, b, dlast, slopes, ahead,
    drows, dwindow, dinitial, dtaps, dbias,
):  # fmt: skip
    """Back through the steps of a block of lane b, whose outputs have the `slopes` [steps + W, C].

    Of those the last W are filled in here: `ahead` [W, C] are the slopes of the steps after this block, zeros for the
    last block, and afterwards those of this block's first steps. Gradients of the inputs are written, others added.
    """
    T, W, C = len(rows), len(initial), len(dbias)
    channels, begin = np.uint64(C), np.uint64(first)
    for w in range(W):
        copy(slopes[steps + w], ahead[w])
    end = since[T - 1, b] + 1
    for k in range(steps):
        t, slope, dnow = start + k, slopes[k], drows[start + k, b, first : first + C]
        for c in range(C):
            dbias[c] += slope[c]
        if W == 3 and t >= W and since[t, b] >= W:
            for c in range(channels):
                dtaps[3, c] += rows[t, b, begin + c] * slope[c]
                dtaps[2, c] += rows[t - 1, b, begin + c] * slope[c]
                dtaps[1, c] += rows[t - 2, b, begin + c] * slope[c]
                dtaps[0, c] += rows[t - 3, b, begin + c] * slope[c]
        else:
            for age in range(W + 1):
                _add_seen(dtaps[W - age], slope, rows, first, window, initial, t, b, age, since[t, b])
                if age > since[t, b]:
                    _add(dinitial[W + since[t, b] - age], taps[W - age], slope)
                elif age > t:
                    _add(dwindow[b, W + t - age], taps[W - age], slope)
        if W == 3 and t + W < T and since[t + W, b] >= W:
            for c in range(C):
                dnow[c] = (
                    taps[3, c] * slope[c]
                    + taps[2, c] * slopes[k + 1, c]
                    + taps[1, c] * slopes[k + 2, c]
                    + taps[0, c] * slopes[k + 3, c]
                )
            continue
        newest = taps[W]
        for c in range(C):
            dnow[c] = newest[c] * slope[c]
        for age in range(1, min(W, T - 1 - t) + 1):
            if since[t + age, b] >= age:
                _add(dnow, taps[W - age], slopes[k + age])
        if T - t <= min(W, end):  # it lies in the last window
            dleft = dlast[b, W - (T - t)]
            for c in range(C):
                dnow[c] += dleft[c]
    for w in range(W):
        copy(ahead[w], slopes[w])
    if start == 0:
        for w in range(W):
            age, dleft = W - w, dlast[b, w]
            if age > end:
                dseen = dinitial[W + end - age]
                for c in range(C):
                    dseen[c] += dleft[c]
            elif age > T:
                dseen = dwindow[b, W + T - age]
                for c in range(C):
                    dseen[c] += dleft[c]
