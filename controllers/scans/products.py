"""Matrix products inside compiled kernels, for recurrences that need one at every step.

A tile of the result stays in registers while it is summed: some rows of as many columns as two vector registers hold,
which with half of all registers is enough sums under way to hide how long a multiplication takes. LLVM does not do so
by itself. The right factor is laid out in panels, whose rows are as wide as a tile, so that it is read in order.

Weights of several gates are laid out gate by gate, each with panels of its own, so that the gates' sums begin at panels
whatever their size. Gradients of weights are products too, of states and inputs turned on their side with the gradients
of the gates in panels, which are added up a few steps at a time while both are in the cache.

Axis letters: B rows of the left factor, M its columns, N columns of the right factor, P panels, W width of a panel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mneme.controllers.scans.machine_code import compiled, kernel


def _has_avx512() -> bool:
    try:
        return bool(get_host_cpu_features().get("avx512f", False))
    except RuntimeError:  # nothing is known of this processor
        return False


_AVX512 = _has_avx512()  # 32 registers of 64 bytes instead of 16 of 32
_BYTES = 128 if _AVX512 else 64
_ROWS = 8 if _AVX512 else 4
_FEW_ROWS = 4


_ONE_GATE = (0,)


def panels(right_MN: np.ndarray, gates: Sequence[int] = _ONE_GATE, first_row: int = 0) -> np.ndarray:
    """The right factor as [P, M, W], with zeros for the columns that a gate's last panel has left over.

    Args:
        right_MN: its columns gate by gate.
        gates: their order in the panels.
        first_row: the row that comes first there; those before it come last.
    """
    M, N = right_MN.shape
    width, size = _width(right_MN.dtype.itemsize), N // len(gates)
    laid_out = np.empty((len(gates) * -(-size // width), M, width), right_MN.dtype)
    _lay_out(right_MN, np.array(gates), first_row, laid_out)
    return laid_out


@kernel
def _lay_out(right, gates, first_row, to):
    (M, N), W = right.shape, to.shape[2]
    size, p = N // len(gates), 0
    for gate in gates:
        for first in range(0, size, W):
            column, columns = gate * size + first, min(W, size - first)
            for m in range(M):
                row = m + first_row - (M if m + first_row >= M else 0)
                for i in range(columns):
                    to[p, m, i] = right[row, column + i]
                for i in range(columns, W):
                    to[p, m, i] = 0
            p += 1


def padded(size: int, dtype: torch.dtype | np.dtype) -> int:
    """The columns that a gate of this size takes in panels."""
    width = _width(dtype.itemsize)
    return -(-size // width) * width


def _width(itemsize: int) -> int:
    """W, for numbers of so many bytes."""
    return _BYTES // itemsize


@compiled
def multiply(left, first, depth, right, panel, stop, out, column, adds):
    """out[:, column:] = left[:, first : first + depth] @ right[panel:stop, :depth], or added to what it holds.

    Offsets instead of slices, so that all calls have the same types and are compiled once. The columns of `out` that a
    panel has left over become 0, or keep what they hold.

    Args:
        left: [B, M].
        first: column of it.
        depth: columns of it, and rows of the panels, that are multiplied.
        right: [P, M, W].
        panel: the first of them.
        stop: the panel after the last.
        out: [B, N].
        column: of it, to which the first panel belongs.
        adds: whether it is added to.
    """
    B, W = len(left), right.shape[2]
    many = B // _ROWS * _ROWS
    whole = B // _FEW_ROWS * _FEW_ROWS
    for p in range(panel, stop):
        for b in range(0, many, _ROWS):
            _many_rows(left, b, first, depth, right[p], out, column, adds)
        for b in range(many, whole, _FEW_ROWS):
            _few_rows(left, b, first, depth, right[p], out, column, adds)
        for b in range(whole, B):
            _one_row(left, b, first, depth, right[p], out, column, adds)
        column += W


@compiled
def put_column(to, row, column, x):
    """Write x down a column of `to`, from a row on."""
    for i in range(len(x)):
        to[row + i, column] = x[i]


@compiled
def put_row(to, row, gates, size):
    """Write gates, of `size` each, along a row of the panels `to`."""
    W, p = to.shape[2], 0
    for start in range(0, len(gates), size):
        for first in range(start, start + size, W):
            for i in range(min(W, start + size - first)):
                to[p, row, i] = gates[first + i]
            p += 1


def _tile(rows: int) -> Callable[..., Any]:
    """A function for kernels, with a slice of rows and one of `depth` columns of the left factor from `first` on:
    out[rows, column : column + W] = left[rows, columns] @ panel[:depth], or added to what is there."""

    @intrinsic
    def tile(typing, left, row, first, depth, panel, out, column, adds):
        def generate(context, builder, sig, args):
            width = _BYTES * 8 // panel.dtype.bitwidth
            vector = ir.VectorType(context.get_value_type(panel.dtype), width)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            left_array, panel_array, out_array = (
                context.make_array(kind)(context, builder, value)
                for kind, value in ((left, args[0]), (panel, args[4]), (out, args[5]))
            )

            def pointer(kind, array, index_row, index_column, to):
                place = cgutils.get_item_pointer(context, builder, kind, array, [index_row, index_column])
                return builder.bitcast(place, to.as_pointer())

            def down(r):
                return builder.add(args[1], ir.Constant(args[1].type, r))

            align, zero = panel.dtype.bitwidth // 8, ir.Constant(args[1].type, 0)
            places = [pointer(out, out_array, down(r), args[6], vector) for r in range(rows)]
            nothing, adds = ir.Constant(vector, None), builder.trunc(args[7], ir.IntType(1))
            begin = [builder.select(adds, builder.load(place, align=align), nothing) for place in places]
            sums = [cgutils.alloca_once_value(builder, value) for value in begin]  # in registers
            with cgutils.for_range(builder, args[3]) as loop:
                of_right = builder.load(pointer(panel, panel_array, loop.index, zero, vector), align=align)
                of_row = builder.add(args[2], loop.index)
                for r, total in enumerate(sums):
                    number = builder.load(pointer(left, left_array, down(r), of_row, vector.element))
                    single = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
                    of_left = builder.shuffle_vector(single, single, everywhere)
                    added = builder.fmul(of_left, of_right, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), added, flags=("contract",)), total)
            for place, total in zip(places, sums, strict=True):
                builder.store(builder.load(total), place, align=align)
            return context.get_dummy_value()

        return types.none(left, types.intp, types.intp, types.intp, panel, out, types.intp, types.boolean), generate

    return tile


_many_rows, _few_rows, _one_row = _tile(_ROWS), _tile(_FEW_ROWS), _tile(1)
