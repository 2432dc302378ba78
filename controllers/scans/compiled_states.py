"""Linear states [N, I] that decay and are written to, walked through again for their gradient inside compiled kernels.

    h' = decay h + w written

Axis letters: K steps of a block, N states a channel, I channels.
"""

from controllers.scans.compiled import compiled, sums

STEPS = 8
"""Backward, states are computed again from the one before each so many steps: what is kept is an eighth of them."""


@sums
def of_write_and_read(n, k, dh, dy, left, written):
    """What the slopes of w and of r in y = r h' are at step k, less what does not depend on the state.

    dw = dh . written + r (dy . written) and dr = dy . left + w (dy . written), where `dh` [N, I] is the slope of the
    states that later steps see: the first products; dy, left and written are [K, I].
    """
    dw, dr = dh.dtype.type(0), dh.dtype.type(0)
    for i in range(dh.shape[1]):
        dw += dh[n, i] * written[k, i]
        dr += dy[k, i] * left[k, i]
    return dw, dr


@compiled
def forget(n, slope, total):
    """At a reset the slope of a lane's state [N, I] is the initial state's, and is 0 before it."""
    for i in range(slope.shape[1]):
        total[n, i] += slope[n, i]
        slope[n, i] = 0
