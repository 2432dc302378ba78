"""The slot memory over time on CPUs, compiled by numba, step after step; `scans.slots.cell` has the rules.

An update of the preset for delayed cue, collecting and learning, is 2.05 times as fast with it and Mamba-2's as
with PyTorch (`python -m benchmarks.backends`, two threads of an Intel Xeon).

Backward, the memories before every step of a block are computed again from the one before the block, then gone back
through. With w the target's weight and f = 1 - g, rule "recent" keeps a share L = w f / w' of the old content and
writes a share G = g / w', where w' = w f + g. Their derivatives are dL/d(w f) = -dG/d(w f) = G / w' and
dG/dg = -dL/dg = L / w'.

Axis letters: T steps, B environments, K slots, D slot size, P blocks of STEPS steps.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.machine_code import (
    LOG2_E,
    arrays,
    compiled,
    copy,
    dot,
    exp2,
    fma,
    in_arrays,
    kernel,
    scratch,
    sigmoid,
    sum_of,
)
from mneme.controllers.scans.resets import gradient_stops
from mneme.controllers.scans.slots.cell import SHUT, Slots

STEPS = 16


class SlotsInputs(NamedTuple):
    """Inputs of all steps."""

    query: Any  # [T, B, D]
    logit: Any  # [T, B] of the gate, which is shut below SHUT
    value: Any  # [T, B, D]


def numba_slots_scan(
    x: SlotsInputs, reset_TB: Tensor, memory: Slots, decay: float, recent: bool, cut_TB: Tensor | None = None
) -> tuple[Tensor, Slots]:
    """`scans.slots.scan.slots_scan`; the rule is "classic" unless `recent`."""
    if torch.is_grad_enabled():
        read_TBD, *after = _SlotsScan.apply(reset_TB, gradient_stops(reset_TB, cut_TB), decay, recent, *x, *memory)
        return read_TBD, Slots(*after)
    return _run(reset_TB, decay, recent, x, memory, keep=False)[:2]


def _run(
    reset_TB: Tensor, decay: float, recent: bool, x: SlotsInputs, memory: Slots, keep: bool
) -> tuple[Tensor, Slots, Slots]:
    """The vectors read, the last memory, and the memories before each block [P, B, ...], with P = 0 unless `keep`."""
    blocks = -(-len(x.query) // STEPS) if keep else 0
    read_TBD = x.query.new_empty(x.query.shape)
    after = Slots(*(part.clone(memory_format=torch.contiguous_format) for part in memory))
    before = Slots(*(part.new_empty(blocks, *part.shape) for part in memory))
    reset, read = arrays(reset_TB, read_TBD)
    room = scratch(read_TBD, *[(memory.usage.shape[1],)] * 2)
    _forward(reset, in_arrays(x), decay, recent, read, in_arrays(after), in_arrays(before), *room)
    return read_TBD, after, before


class _SlotsScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reset_TB: Tensor, stop_TB: Tensor, decay: float, recent: bool, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        x, memory = SlotsInputs(*inputs[:3]), Slots(*inputs[3:])
        read_TBD, after, before = _run(reset_TB, decay, recent, x, memory, keep=True)
        ctx.decay, ctx.recent = decay, recent
        ctx.save_for_backward(reset_TB, stop_TB, *x, *before)
        return read_TBD, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dread_TBD: Tensor, *dafter: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, stop_TB, *tensors = ctx.saved_tensors
        x, before = SlotsInputs(*tensors[:3]), Slots(*tensors[3:])
        dx = SlotsInputs(*(part.new_empty(part.shape) for part in x))
        dmemory = Slots(*(part.clone(memory_format=torch.contiguous_format) for part in dafter))
        reset, stop, dread = arrays(reset_TB, stop_TB, dread_TBD)
        given = reset, stop, in_arrays(x), ctx.decay, ctx.recent, in_arrays(before), dread
        K, D = dmemory.slots.shape[1:]
        again: Any = Slots(*scratch(dread_TBD, (STEPS + 1, K, D), (STEPS + 1, K), (STEPS + 1, K)))  # type: ignore[arg-type]
        targets, room = np.empty(STEPS, np.int64), scratch(dread_TBD, (STEPS,), (STEPS,), (K,), (K,), (K,))
        _backward(*given, in_arrays(dx), in_arrays(dmemory), again, targets, *room)
        return None, None, None, None, *dx, *dmemory


@compiled
def _gate(logit):
    """g and 1 - g."""
    if logit < SHUT:
        return np.float32(0), np.float32(1)  # becomes float64 where needed
    return sigmoid(logit), sigmoid(-logit)


@compiled
def clear(memory, b):
    """Empty memory b."""
    zero = memory.slots.dtype.type(0)
    for k in range(memory.usage.shape[1]):
        memory.usage[b, k] = zero
        memory.age[b, k] = zero
        for d in range(memory.slots.shape[2]):
            memory.slots[b, k, d] = zero


@compiled
def _copy(to, i, source, j):
    """Copy the memory in row j of one array of memories to row i of another."""
    copy(to.slots[i], source.slots[j])
    copy(to.usage[i], source.usage[j])
    copy(to.age[i], source.age[j])


@compiled
def _attend(query, slots, usage, recent, unweighed, attention):
    """Fill the attention [K], and what it would be for weights of 1 with the same divisor."""
    zero, one, log2_e = slots.dtype.type(0), slots.dtype.type(1), slots.dtype.type(LOG2_E)
    K = len(slots)
    most = slots.dtype.type(-np.inf)
    for k in range(K):
        score = dot(slots[k], query)
        unweighed[k] = score
        if (not recent or usage[k] > zero) and score > most:
            most = score
    for k in range(K):
        weight = usage[k] if recent else one
        if weight > zero:
            unweighed[k] = exp2((unweighed[k] - most) * log2_e)
        else:
            unweighed[k] = zero
        attention[k] = weight * unweighed[k]
    total = sum_of(attention)
    if total > zero:
        for k in range(K):
            unweighed[k] /= total
            attention[k] /= total


@compiled
def _target(usage, age, recent):
    """The slot to write to."""
    best = 0
    for k in range(len(usage)):
        if recent:
            if usage[k] < 0.5:
                return k
            if age[k] > age[best]:
                best = k
        elif usage[k] < usage[best]:
            best = k
    return best


@compiled
def _write(gate, free, value, decay, recent, memory, b, k):
    """Write to slot k of memory b."""
    slot, usage, age, one = memory.slots[b, k], memory.usage[b], memory.age[b], memory.slots.dtype.type(1)
    for j in range(len(age)):
        age[j] += one
    age[k] *= free
    if gate == 0 and (recent or decay == 0):
        return  # not a bit changes
    left, written = free * (one - decay), gate
    if recent:
        weight = usage[k]
        usage[k] = weight * free + gate
        left, written = weight * free / usage[k] * (one - decay * gate), gate / usage[k]
    else:
        usage[k] += gate
    for d in range(len(slot)):
        slot[d] = fma(left, slot[d], written * value[d])


@kernel
def _forward(reset, x, decay, recent, read, memory, before, unweighed, attention):
    """Fill `read` [T, B, D]; `memory` goes from before the first step to after the last."""
    T, B, _ = x.query.shape
    decay = x.query.dtype.type(decay)
    for t in range(T):
        for b in range(B):
            if reset[t, b]:
                clear(memory, b)
            if t % STEPS == 0 and len(before.slots) > 0:
                block = t // STEPS
                copy(before.slots[block, b], memory.slots[b])
                copy(before.usage[block, b], memory.usage[b])
                copy(before.age[block, b], memory.age[b])
            given = x.query[t, b], x.logit[t, b], x.value[t, b]
            read_and_write(given, decay, recent, memory, b, read[t, b], unweighed, attention)


@compiled
def read_and_write(given, decay, recent, memory, b, read, unweighed, attention):
    """One step of memory b, which is `given` a query [D], a gate's logit and a value [D], and fills `read` [D]."""
    query, logit, value = given
    _read(query, memory.slots[b], memory.usage[b], recent, unweighed, attention, read)
    gate, free = _gate(logit)
    _write(gate, free, value, decay, recent, memory, b, _target(memory.usage[b], memory.age[b], recent))


@compiled
def _read(query, slots, usage, recent, unweighed, attention, read):
    _attend(query, slots, usage, recent, unweighed, attention)
    for d in range(len(read)):
        read[d] = slots.dtype.type(0)
    for k in range(len(attention)):
        share = attention[k]
        for d in range(len(read)):
            read[d] += share * slots[k, d]


@kernel
def _backward(
    reset, stop, x, decay, recent, before, dread, dx, dmemory,
    again, targets, gates, frees, unweighed, attention, dattention,
):  # fmt: skip
    """Fill `dx`; `dmemory` goes from the gradient of the last memory to that of the first. `again` has room for the
    memories before the steps of a block, and in the last row for the one that goes on."""
    (T, B, D), K, dtype = x.query.shape, dmemory.usage.shape[1], x.query.dtype
    zero, one, decay = dtype.type(0), dtype.type(1), dtype.type(decay)
    for b in range(B):
        dslots_b, dusage_b, dage_b = dmemory.slots[b], dmemory.usage[b], dmemory.age[b]
        for block in range(len(before.slots) - 1, -1, -1):
            start, end = block * STEPS, min((block + 1) * STEPS, T)
            copy(again.slots[STEPS], before.slots[block, b])
            copy(again.usage[STEPS], before.usage[block, b])
            copy(again.age[STEPS], before.age[block, b])
            for t in range(start, end):
                i = t - start
                if reset[t, b]:
                    clear(again, STEPS)
                _copy(again, i, again, STEPS)
                targets[i] = _target(again.usage[i], again.age[i], recent)
                gates[i], frees[i] = _gate(x.logit[t, b])
                _write(gates[i], frees[i], x.value[t, b], decay, recent, again, STEPS, targets[i])
            for t in range(end - 1, start - 1, -1):
                i = t - start
                slots_t, usage_t, k = again.slots[i], again.usage[i], targets[i]
                g, f, w, v, dv = gates[i], frees[i], usage_t[k], x.value[t, b], dx.value[t, b]
                # through the write
                slot, dslot = slots_t[k], dslots_b[k]
                of_slot, of_value = dot(dslot, slot), dot(dslot, v)
                dg, df = dusage_b[k], dage_b[k] * (again.age[i, k] + one)
                left, written = f * (one - decay), g
                if recent:
                    df += dusage_b[k] * w
                    dusage_b[k] *= f
                    occupied = w * f + g
                    left = one
                    if occupied > 0:
                        kept = one - decay * g
                        stays, written = w * f / occupied, g / occupied
                        left = stays * kept
                        of_share = (of_slot * kept - of_value) / occupied
                        dg -= fma(stays, of_share, of_slot * stays * decay)
                        df += w * written * of_share
                        dusage_b[k] += f * written * of_share
                else:
                    dg += of_value
                    df += of_slot * (one - decay)
                for d in range(D):
                    dv[d] = written * dslot[d]
                    dslot[d] *= left
                dx.logit[t, b] = (dg - df) * g * f
                dage_b[k] *= f
                # through the read
                q, dq, dr = x.query[t, b], dx.query[t, b], dread[t, b]
                _attend(q, slots_t, usage_t, recent, unweighed, attention)
                for j in range(K):
                    dattention[j] = dot(dr, slots_t[j])
                mean = dot(attention, dattention)
                for d in range(D):
                    dq[d] = zero
                for j in range(K):
                    share, dscore = attention[j], attention[j] * (dattention[j] - mean)
                    if recent:
                        dusage_b[j] += unweighed[j] * (dattention[j] - mean)
                    for d in range(D):
                        dq[d] += dscore * slots_t[j, d]
                        dslots_b[j, d] += fma(share, dr[d], dscore * q[d])
                if stop[t, b]:
                    clear(dmemory, b)
