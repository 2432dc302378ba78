"""Matrix products inside compiled kernels, for recurrences that need one at every step.

Axis letters: B rows of the left factor, M its columns, N columns of the right factor.
"""

from mneme.controllers.scans.machine_code import compiled


@compiled
def multiply(left, right, out):
    """out [B, N] = left [B, M] @ right [M, N], by four rows of `left`, so that `right` is loaded a quarter as often."""
    B = len(left)
    for b in range(0, B - 3, 4):
        _four_rows(
            left[b], left[b + 1], left[b + 2], left[b + 3], right, out[b], out[b + 1], out[b + 2], out[b + 3]
        )  # fmt: skip
    for b in range(B // 4 * 4, B):
        _one_row(left[b], right, out[b])


@compiled
def _four_rows(left_0, left_1, left_2, left_3, right, out_0, out_1, out_2, out_3):
    M, N = right.shape
    for n in range(N):
        out_0[n] = out_1[n] = out_2[n] = out_3[n] = right.dtype.type(0)
    for m in range(0, M - 1, 2):
        upper, lower = right[m], right[m + 1]
        a_0, a_1, a_2, a_3 = left_0[m], left_1[m], left_2[m], left_3[m]
        b_0, b_1, b_2, b_3 = left_0[m + 1], left_1[m + 1], left_2[m + 1], left_3[m + 1]
        for n in range(N):
            out_0[n] += a_0 * upper[n] + b_0 * lower[n]
            out_1[n] += a_1 * upper[n] + b_1 * lower[n]
            out_2[n] += a_2 * upper[n] + b_2 * lower[n]
            out_3[n] += a_3 * upper[n] + b_3 * lower[n]
    if M % 2:
        _add_row(left_0[M - 1], right[M - 1], out_0)
        _add_row(left_1[M - 1], right[M - 1], out_1)
        _add_row(left_2[M - 1], right[M - 1], out_2)
        _add_row(left_3[M - 1], right[M - 1], out_3)


@compiled
def _one_row(left, right, out):
    for n in range(len(out)):
        out[n] = right.dtype.type(0)
    for m in range(len(right)):
        _add_row(left[m], right[m], out)


@compiled
def _add_row(factor, row, out):
    for n in range(len(out)):
        out[n] += factor * row[n]
