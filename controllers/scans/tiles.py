"""Rectangles of numbers that compiled kernels keep in a core's registers.

By itself LLVM makes vectors of the innermost loop alone. In a recurrence that is the one over channels, so that every
state comes from memory and goes back at each step. A tile is R rows (states) of W neighbours (channels), in vectors; a
kernel that works on tiles has its steps innermost, and the states in registers from one to the next. So does a matrix
product, whose rows are lanes, and which sums its tiles up.

Arithmetic is element by element, and one row counts for all rows of the other. Products may be fused with what they
are added to. Unlike those of loops that LLVM makes vectors of, the results do not hang on where arrays lie.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core.cgutils import get_item_pointer, get_or_insert_function, pack_array
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    models,
    overload,
    overload_attribute,
    register_model,
    typeof_impl,
    unbox,
)
from torch import Tensor

from mneme.controllers.scans.compiled import EXPONENT, LOWEST, POWERS, ROUNDING, exp2

_ROWS = 4
_BYTES = 128 if get_host_cpu_features().get("avx512f") else 64
"""Of a row. Two vectors of AVX, as with more what a step of the recurrence needs does not stay in registers."""

_FLAGS = ("contract",)
_INDEX = ir.IntType(32)


@dataclass(frozen=True)
class TileShape:
    """How large a kernel's tiles are. It is an argument, and the kernel is compiled for each that it is called with."""

    rows: int  # R
    width: int  # W, a power of 2

    @property
    def folded(self) -> int:
        """How many partial sums `add_up` keeps of a row."""
        return -(-self.width // 2)


def tile_shape(states_NI: Tensor) -> TileShape:
    """The largest that fits this machine, and divides states [N, I]."""
    states, channels = states_NI.shape
    return TileShape(math.gcd(states, _ROWS), math.gcd(channels, _BYTES // states_NI.element_size()))


def product_tiles(rows: int, columns: int, dtype: torch.dtype) -> TileShape:
    """Those that a product of this size is made of: the largest, but of one row where there are few."""
    width = min(_BYTES // dtype.itemsize, 2 ** (columns.bit_length() - 1))
    return TileShape(_ROWS if rows >= _ROWS else 1, width)


class _Tile(types.Type):
    def __init__(self, dtype, rows: int, width: int) -> None:
        self.dtype, self.rows, self.width = dtype, rows, width
        super().__init__(name=f"Tile({dtype}, {rows}, {width})")


class _Shape(types.Type):
    def __init__(self, shape: TileShape) -> None:
        self.rows, self.width, self.folded = shape.rows, shape.width, shape.folded
        super().__init__(name=repr(shape))


@register_model(_Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile: _Tile) -> None:
        row = ir.VectorType(manager.lookup(tile.dtype).get_value_type(), tile.width)
        super().__init__(manager, tile, ir.ArrayType(row, tile.rows))


register_model(_Shape)(models.OpaqueModel)


_shape_type = cache(_Shape)


@typeof_impl.register(TileShape)
def _typeof_shape(shape: TileShape, _) -> _Shape:
    return _shape_type(shape)


@unbox(_Shape)
def _unbox_shape(shape: _Shape, value, c) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


def _known(name: str) -> None:
    @overload_attribute(_Shape, name)
    def _constant(shape):
        value = getattr(shape, name)
        return lambda shape: value


for _name in ("rows", "width", "folded"):
    _known(_name)


class _Elementwise(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and all(isinstance(arg, _Tile) for arg in args):
            return signature(max(args, key=lambda tile: tile.rows), *args)
        return None


def _offer(operation: Callable[..., Any], instruction: str) -> None:
    infer_global(operation)(type(f"_{instruction}", (_Elementwise,), {"key": operation}))

    @lower_builtin(operation, _Tile, _Tile)
    def _generate(context, builder, sig, args):
        rows = []
        for r in range(sig.return_type.rows):
            x, y = (
                builder.extract_value(arg, r if tile.rows > 1 else 0) for arg, tile in zip(args, sig.args, strict=True)
            )
            rows.append(getattr(builder, instruction)(x, y, flags=_FLAGS))
        return pack_array(builder, rows)


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _offer(_operation, _instruction)


class _Place:
    """Of vectors and numbers in a table: an array with two axes, the last of which lies in order."""

    def __init__(self, context, builder, array, value, row, column) -> None:
        self.context, self.builder, self.array, self.row, self.column = context, builder, array, row, column
        self.struct = context.make_array(array)(context, builder, value)
        self.align = array.dtype.bitwidth // 8

    def pointer(self, down: int, right: int, width: int):
        row, column = (
            self.builder.add(index, ir.Constant(index.type, by))
            for index, by in ((self.row, down), (self.column, right))
        )
        pointer = get_item_pointer(self.context, self.builder, self.array, self.struct, [row, column])
        return self.builder.bitcast(pointer, self.kind(width).as_pointer())

    def kind(self, width: int):
        return ir.VectorType(self.context.get_value_type(self.array.dtype), width)

    def load(self, down: int, right: int, width: int):
        return self.builder.load(self.pointer(down, right, width), align=self.align)

    def store(self, vector, down: int) -> None:
        self.builder.store(vector, self.pointer(down, 0, vector.type.count), align=self.align)


def _repeated(builder, number, width: int):
    """A vector of one number as a wider one."""
    return builder.shuffle_vector(number, number, ir.Constant(ir.VectorType(_INDEX, width), [0] * width))


def _loading(table, rows: int, shape, vector: Callable[..., Any]):
    """What an intrinsic gives that loads a tile, each row by `vector` of the place, the row's number and the width."""
    tile = _Tile(table.dtype, rows, shape.width)

    def generate(context, builder, sig, args):
        place = _Place(context, builder, table, *args[:3])
        return pack_array(builder, [vector(place, r, tile.width) for r in range(rows)])

    return tile(table, types.intp, types.intp, shape), generate


@intrinsic
def load(typing, table, row, column, shape):
    """table[row : row + R, column : column + W]."""
    return _loading(table, shape.rows, shape, lambda place, r, width: place.load(r, 0, width))


@intrinsic
def load_row(typing, table, row, column, shape):
    """table[row, column : column + W], a tile of one row."""
    return _loading(table, 1, shape, lambda place, r, width: place.load(r, 0, width))


@intrinsic
def load_column(typing, table, row, column, shape):
    """A tile whose rows are each filled with one of table[row, column : column + R]."""
    return _loading(
        table, shape.rows, shape, lambda place, r, width: _repeated(place.builder, place.load(0, r, 1), width)
    )


@intrinsic
def load_down(typing, table, row, column, shape):
    """A tile whose rows are each filled with one of table[row : row + R, column]."""
    return _loading(
        table, shape.rows, shape, lambda place, r, width: _repeated(place.builder, place.load(r, 0, 1), width)
    )


@intrinsic
def store(typing, table, row, column, tile):
    """table[row : row + R, column : column + W] = tile."""

    def generate(context, builder, sig, args):
        place = _Place(context, builder, table, *args[:3])
        for r in range(tile.rows):
            place.store(builder.extract_value(args[3], r), r)
        return context.get_dummy_value()

    return types.none(table, types.intp, types.intp, tile), generate


@intrinsic
def zeros(typing, dtype, shape):
    """A tile of zeros."""
    tile = _Tile(dtype.dtype, shape.rows, shape.width)
    return tile(dtype, shape), lambda context, builder, sig, args: context.get_constant_null(tile)


@intrinsic
def sum_of_rows(typing, tile):
    """One row, the sum of all."""

    def generate(context, builder, sig, args):
        total = builder.extract_value(args[0], 0)
        for r in range(1, tile.rows):
            total = builder.fadd(total, builder.extract_value(args[0], r), flags=_FLAGS)
        return pack_array(builder, [total])

    return _Tile(tile.dtype, 1, tile.width)(tile), generate


def _halves(builder, vector) -> list[Any]:
    width = vector.type.count // 2
    picks = (list(range(start, start + width)) for start in (0, width))
    return [builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INDEX, width), pick)) for pick in picks]


@intrinsic
def add_up(typing, table, row, tile):
    """Add each row of the tile, folded in two, to the partial sums table[row : row + R]; `total` ends it."""

    def generate(context, builder, sig, args):
        value, row, rows = args
        place = _Place(context, builder, table, value, row, ir.Constant(row.type, 0))
        for r in range(tile.rows):
            vector = builder.extract_value(rows, r)
            parts = _halves(builder, vector) if tile.width > 1 else [vector]
            total = place.load(r, 0, parts[0].type.count)
            for part in parts:
                total = builder.fadd(total, part, flags=_FLAGS)
            place.store(total, r)
        return context.get_dummy_value()

    return types.none(table, types.intp, tile), generate


@intrinsic
def total(typing, table, row, shape):
    """The sum of the partial sums table[row]."""

    def generate(context, builder, sig, args):
        value, row, _ = args
        vector = _Place(context, builder, table, value, row, ir.Constant(row.type, 0)).load(0, 0, shape.folded)
        while vector.type.count > 1:
            vector = builder.fadd(*_halves(builder, vector), flags=_FLAGS)
        return builder.extract_element(vector, ir.Constant(_INDEX, 0))

    return table.dtype(table, types.intp, shape), generate


@intrinsic
def _exp2(typing, tile):
    def generate(context, builder, sig, args):
        rows = [_powers(builder, builder.extract_value(args[0], r)) for r in range(tile.rows)]
        return pack_array(builder, rows)

    return tile(tile), generate


def _powers(builder, x):
    """`scans.compiled.exp2` of a vector, whose numbers are at most 127."""
    kind, integers = x.type, ir.VectorType(ir.IntType(32), x.type.count)
    name = f"v{kind.count}{kind.element.intrinsic_name}"
    if kind.element != ir.FloatType():
        exact = get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), f"llvm.exp2.{name}")
        return builder.call(exact, [x])

    def constant(number):
        return ir.Constant(kind, [float(number)] * kind.count)

    lowest, rounding = constant(LOWEST), constant(ROUNDING)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    rounded = builder.fadd(x, rounding)
    f, power = builder.fsub(x, builder.fsub(rounded, rounding)), constant(POWERS[-1])
    for factor in (*POWERS[-2::-1], 1):
        power = builder.fadd(builder.fmul(power, f, flags=_FLAGS), constant(factor), flags=_FLAGS)
    shifted = builder.shl(builder.bitcast(rounded, integers), ir.Constant(integers, [EXPONENT] * kind.count))
    return builder.fmul(power, builder.bitcast(shifted, kind))


@overload(exp2)
def _exp2_of_tile(x):
    return (lambda x: _exp2(x)) if isinstance(x, _Tile) else None
