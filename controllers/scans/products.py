"""Matrix products inside compiled kernels, for recurrences that need one at every step.

A tile of the result, of four rows and 64 bytes of columns, stays in registers while it is summed. LLVM does not do so
by itself, which makes the update of a GRU take 1.13 times as long, and of an LSTM 1.3 times. The right factor is laid
out in panels, whose rows are as wide as a tile, so that it is read in order.

Axis letters: B rows of the left factor, M its columns, N columns of the right factor, P panels, W width of a panel.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from mneme.controllers.scans.machine_code import compiled

_BYTES = 64
_ROWS = 4


def panels(right_MN: Tensor) -> Tensor:
    """The right factor as [P, M, W], with zeros for the columns that the last panel has left over."""
    M, N = right_MN.shape
    width = _BYTES // right_MN.element_size()
    return F.pad(right_MN.detach(), (0, -N % width)).view(M, -1, width).transpose(0, 1).contiguous()


@compiled
def multiply(left, right, out):
    """out [B, P W] = left [B, M] @ right [P, M, W]; the columns of `out` from N on become 0."""
    B, W = len(left), right.shape[2]
    for p in range(len(right)):
        for b in range(0, B - _ROWS + 1, _ROWS):
            _four_rows(left, b, right[p], out, p * W)
        for b in range(B // _ROWS * _ROWS, B):
            _one_row(left, b, right[p], out, p * W)


def _tile(rows: int) -> Callable[..., Any]:
    """A function for kernels: out[row : row + rows, column : column + W] = left[row : row + rows] @ panel [M, W]."""

    @intrinsic
    def tile(typing, left, row, panel, out, column):
        def generate(context, builder, sig, args):
            width = _BYTES * 8 // panel.dtype.bitwidth
            vector = ir.VectorType(context.get_value_type(panel.dtype), width)
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            left_array, panel_array, out_array = (
                context.make_array(kind)(context, builder, value)
                for kind, value in ((left, args[0]), (panel, args[2]), (out, args[3]))
            )

            def pointer(kind, array, index_row, index_column, to):
                place = cgutils.get_item_pointer(context, builder, kind, array, [index_row, index_column])
                return builder.bitcast(place, to.as_pointer())

            def down(r):
                return builder.add(args[1], ir.Constant(args[1].type, r))

            align, zero = panel.dtype.bitwidth // 8, ir.Constant(args[1].type, 0)
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(rows)]  # in registers
            with cgutils.for_range(builder, cgutils.unpack_tuple(builder, panel_array.shape)[0]) as loop:
                of_right = builder.load(pointer(panel, panel_array, loop.index, zero, vector), align=align)
                for r, total in enumerate(sums):
                    number = builder.load(pointer(left, left_array, down(r), loop.index, vector.element))
                    single = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.IntType(32)(0))
                    of_left = builder.shuffle_vector(single, single, everywhere)
                    added = builder.fmul(of_left, of_right, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), added, flags=("contract",)), total)
            for r, total in enumerate(sums):
                builder.store(builder.load(total), pointer(out, out_array, down(r), args[4], vector), align=align)
            return context.get_dummy_value()

        return types.none(left, types.intp, panel, out, types.intp), generate

    return tile


_four_rows, _one_row = _tile(_ROWS), _tile(1)
