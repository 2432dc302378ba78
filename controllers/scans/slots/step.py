"""One step of many lanes through the slot memory, from what it is read and written by, compiled by numba for acting.

`scans.slots.numba` has the scan.

Axis letters: B lanes, X features that queries are made of, M features that gates and values are made of, K slots, D
slot size.
"""

from typing import Any, NamedTuple

from mneme.controllers.scans.layer_step import LANES, LayerStep
from mneme.controllers.scans.machine_code import add, copy, dot, in_arrays, kernel, scratch
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.slots.cell import Slots
from mneme.controllers.scans.slots.numba import clear, read_and_write


class SlotsWeights(NamedTuple):
    """Parameters that queries, values and the logits of gates are made by."""

    query: Any  # [D, X]
    query_bias: Any  # [D]
    value: Any  # [D, M]
    value_bias: Any  # [D]
    gate: Any  # [1, M]
    gate_bias: Any  # [1]


class _Memory(NamedTuple):
    w: SlotsWeights  # matrices in panels, but for the gate's
    decay: Any  # of the numbers' type
    recent: bool


def slots_step(w: SlotsWeights, slots: int, decay: float, recent: bool) -> LayerStep:
    """The step from x and m, side by side [B, X + M], to m and what was read [B, M + D].

    It carries `slots` [B, K, D], `usage` and `age` [B, K], which start empty.

    Args:
        w: the parameters.
        slots: K.
        decay: share of a slot's content that a write takes away, besides what it replaces.
        recent: whether the rule is "recent".
    """
    own, (D, M) = in_arrays(w), w.value.shape
    dtype, laid_out = own.gate.dtype, own._replace(query=panels(own.query.T), value=panels(own.value.T))
    memory, width = _Memory(laid_out, dtype.type(decay), recent), padded(D, dtype)
    room = scratch(w.gate, (LANES, width), (LANES, width), (slots,), (slots,))
    return LayerStep(_slots, memory, Slots._fields, w.gate, M + D, room)


@kernel
def _slots(x, reset, layer, slots, usage, age, y, room):
    (query, value, unweighed, attention), w, memory = room, layer.w, Slots(slots, usage, age)
    M, D = w.gate.shape[1], len(w.query_bias)
    X = x.shape[1] - M
    for start in range(0, len(x), LANES):
        some = x[start : min(start + LANES, len(x))]
        multiply(some, 0, X, w.query, 0, len(w.query), query, 0, False)
        multiply(some, X, M, w.value, 0, len(w.value), value, 0, False)
        for b in range(start, start + len(some)):
            asked, given, m = query[b - start, :D], value[b - start, :D], y[b, :M]
            add(asked, w.query_bias)
            add(given, w.value_bias)
            copy(m, x[b, X:])
            logit = dot(m, w.gate[0]) + w.gate_bias[0]
            if reset[b]:
                clear(memory, b)
            if layer.recent:
                for k in range(usage.shape[1]):
                    usage[b, k] = min(max(usage[b, k], usage.dtype.type(0)), usage.dtype.type(1))
            read_and_write((asked, logit, given), layer.decay, layer.recent, memory, b, y[b, M:], unweighed, attention)
