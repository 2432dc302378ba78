"""The slot memory on a CPU, compiled: step after step as its equations say; they stand in `scans.slots`.

Backward, the memories before every step of a block are computed again from the one before the block, then walked back.
With w the target's weight and f = 1 - g, what stays and what is written under "recent" are the shares L = w f / w' and
G = g / w' of w' = w f + g, whose slopes are dL/d(w f) = -dG/d(w f) = G / w' and dG/dg = -dL/dg = L / w'.

Axis letters: T time, B lanes, K slots, D slot size, P blocks of STEPS steps.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.compiled import arrays, compiled, copy, dot, exp2, kernel, lasts, sigmoid, sums
from mneme.controllers.scans.selective import LOG2_E
from mneme.controllers.scans.slots import SHUT, Slots

STEPS = 16


def compiled_slots_scan(
    query_TBD: Tensor,
    logit_TB: Tensor,
    value_TBD: Tensor,
    reset_TB: Tensor,
    memory: Slots,
    decay: float,
    recent: bool,
    in_place: bool,
) -> tuple[Tensor, Slots]:
    """`scans.slots.slots_scan`: r [T, B, D], and the memory after the last step.

    Args:
        logit_TB: of the gate, which is shut below `SHUT`.
        recent: the rule, else it is "classic".
        in_place: without autograd the last memory takes the place of the given one, where all of it lies in order.
    """
    inputs = query_TBD, logit_TB, value_TBD, *memory
    if torch.is_grad_enabled():
        read_TBD, *after = _SlotsScan.apply(reset_TB, decay, recent, *inputs)
        return read_TBD, Slots(*after)
    read_TBD, after, _ = _run(reset_TB, decay, recent, inputs, keep=False, in_place=in_place)
    return read_TBD, after


def _run(
    reset_TB: Tensor, decay: float, recent: bool, inputs: tuple[Tensor, ...], keep: bool, in_place: bool = False
) -> tuple[Tensor, Slots, Slots]:
    """What was read, the memory after, and unless not `keep` the memories before each block, [P, B, ...]."""
    query_TBD, memory = inputs[0], Slots(*inputs[3:])
    blocks = -(-len(query_TBD) // STEPS) if keep else 0
    read_TBD, after = query_TBD.new_empty(query_TBD.shape), Slots(*lasts(*memory, in_place=in_place))
    before = Slots(*(part.new_empty(blocks, *part.shape) for part in memory))
    _forward(*arrays(reset_TB, *inputs), decay, recent, after.slots is memory.slots, *arrays(read_TBD, *after, *before))
    return read_TBD, after, before


class _SlotsScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, decay: float, recent: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
        read_TBD, after, before = _run(reset_TB, decay, recent, inputs, keep=True)
        ctx.decay, ctx.recent = decay, recent
        ctx.save_for_backward(reset_TB, *inputs[:3], *before)
        return read_TBD, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dread_TBD: Tensor, *dafter: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, query_TBD, logit_TB, value_TBD, *before = ctx.saved_tensors
        slopes = [part.new_empty(part.shape) for part in (query_TBD, logit_TB, value_TBD, *dafter)]
        given = arrays(reset_TB, query_TBD, logit_TB, value_TBD)
        _backward(*given, ctx.decay, ctx.recent, *arrays(*before, dread_TBD, *dafter, *slopes))
        return None, None, None, *slopes


@compiled
def _gate(logit):
    """How far the gate is open, g, and f = 1 - g."""
    if logit < SHUT:
        return np.float32(0), np.float32(1)  # which float64 takes in
    return sigmoid(logit), sigmoid(-logit)


@compiled
def _clear(slots, usage, age):
    zero = slots.dtype.type(0)
    for k in range(len(usage)):
        usage[k] = zero
        age[k] = zero
        for d in range(slots.shape[1]):
            slots[k, d] = zero


@sums
def _total(values):
    total = values.dtype.type(0)
    for i in range(len(values)):
        total += values[i]
    return total


@compiled
def _attend(query, slots, usage, recent, unweighed, attention):
    """Fill attention [K], and what it would be of weights of 1 at the same normalisation."""
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
    total = _total(attention)
    if total > zero:
        for k in range(K):
            unweighed[k] /= total
            attention[k] /= total


@compiled
def _target(usage, age, recent):
    """The slot to write to: the first that is less than half occupied, else the oldest; or the one used least."""
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
def _write(gate, free, value, decay, recent, slots, usage, age, k):
    """Write to slot k."""
    one = slots.dtype.type(1)
    for j in range(len(age)):
        age[j] += one
    age[k] *= free
    if gate == 0 and (recent or decay == 0):
        return  # to the bit
    left, written = free * (one - decay), gate
    if recent:
        weight = usage[k]
        usage[k] = weight * free + gate
        left, written = weight * free / usage[k] * (one - decay * gate), gate / usage[k]
    else:
        usage[k] += gate
    slot = slots[k]
    for d in range(len(slot)):
        slot[d] = left * slot[d] + written * value[d]


@compiled
def _walk(
    reset, query, logit, value, decay, recent, unweighed, attention,
    read, slots, usage, age, slots_before, usage_before, age_before,
):  # fmt: skip
    """All steps, from what the memory holds."""
    T, B, D = query.shape
    for t in range(T):
        for b in range(B):
            slots_b, usage_b, age_b, read_t = slots[b], usage[b], age[b], read[t, b]
            if reset[t, b]:
                _clear(slots_b, usage_b, age_b)
            if t % STEPS == 0 and len(slots_before) > 0:
                copy(slots_before[t // STEPS, b], slots_b)
                copy(usage_before[t // STEPS, b], usage_b)
                copy(age_before[t // STEPS, b], age_b)
            _attend(query[t, b], slots_b, usage_b, recent, unweighed, attention)
            for d in range(D):
                read_t[d] = 0
            for k in range(len(attention)):
                share = attention[k]
                for d in range(D):
                    read_t[d] += share * slots_b[k, d]
            target = _target(usage_b, age_b, recent)
            gate, free = _gate(logit[t, b])
            _write(gate, free, value[t, b], decay, recent, slots_b, usage_b, age_b, target)


@kernel
def _forward(
    reset, query, logit, value, slots0, usage0, age0, decay, recent, in_place,
    read, slots, usage, age, slots_before, usage_before, age_before,
):  # fmt: skip
    K, dtype = slots0.shape[1], query.dtype
    if not in_place:
        copy(slots, slots0)
        copy(usage, usage0)
        copy(age, age0)
    _walk(
        reset, query, logit, value, dtype.type(decay), recent, np.empty(K, dtype), np.empty(K, dtype),
        read, slots, usage, age, slots_before, usage_before, age_before,
    )  # fmt: skip


@compiled
def _walk_back(
    reset, query, logit, value, decay, recent, slots_before, usage_before, age_before, dread,
    slots, usage, age, last, last_usage, last_age, targets, gates, frees, unweighed, attention, dattention,
    dquery, dlogit, dvalue, dslots, dusage, dage,
):  # fmt: skip
    """All blocks, the last first, from the slopes of what the memory holds."""
    (T, B, D), K = query.shape, dusage.shape[1]
    zero, one = query.dtype.type(0), query.dtype.type(1)
    for b in range(B):
        dslots_b, dusage_b, dage_b = dslots[b], dusage[b], dage[b]
        for block in range(len(slots_before) - 1, -1, -1):
            start, stop = block * STEPS, min((block + 1) * STEPS, T)
            copy(last, slots_before[block, b])
            copy(last_usage, usage_before[block, b])
            copy(last_age, age_before[block, b])
            for t in range(start, stop):
                i = t - start
                if reset[t, b]:
                    _clear(last, last_usage, last_age)
                copy(slots[i], last)
                copy(usage[i], last_usage)
                copy(age[i], last_age)
                targets[i] = _target(last_usage, last_age, recent)
                gates[i], frees[i] = _gate(logit[t, b])
                _write(gates[i], frees[i], value[t, b], decay, recent, last, last_usage, last_age, targets[i])
            for t in range(stop - 1, start - 1, -1):
                i = t - start
                slots_t, usage_t, k = slots[i], usage[i], targets[i]
                g, f, w, v, dv = gates[i], frees[i], usage_t[k], value[t, b], dvalue[t, b]
                # through the write
                slot, dslot = slots_t[k], dslots_b[k]
                of_slot, of_value = dot(dslot, slot), dot(dslot, v)
                dg, df = dusage_b[k], dage_b[k] * (age[i, k] + one)
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
                        slope = (of_slot * kept - of_value) / occupied
                        dg -= stays * slope + of_slot * stays * decay
                        df += w * written * slope
                        dusage_b[k] += f * written * slope
                else:
                    dg += of_value
                    df += of_slot * (one - decay)
                for d in range(D):
                    dv[d] = written * dslot[d]
                    dslot[d] *= left
                dlogit[t, b] = (dg - df) * g * f
                dage_b[k] *= f
                # through the read
                q, dq, dr = query[t, b], dquery[t, b], dread[t, b]
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
                        dslots_b[j, d] += share * dr[d] + dscore * q[d]
                if reset[t, b]:
                    _clear(dslots_b, dusage_b, dage_b)


@kernel
def _backward(
    reset, query, logit, value, decay, recent, slots_before, usage_before, age_before,
    dread, dslots_last, dusage_last, dage_last, dquery, dlogit, dvalue, dslots, dusage, dage,
):  # fmt: skip
    (K, D), dtype = dslots.shape[1:], query.dtype
    copy(dslots, dslots_last)
    copy(dusage, dusage_last)
    copy(dage, dage_last)
    _walk_back(
        reset, query, logit, value, dtype.type(decay), recent, slots_before, usage_before, age_before, dread,
        np.empty((STEPS, K, D), dtype), np.empty((STEPS, K), dtype), np.empty((STEPS, K), dtype),
        np.empty((K, D), dtype), np.empty(K, dtype), np.empty(K, dtype),
        np.empty(STEPS, np.int64), np.empty(STEPS, dtype), np.empty(STEPS, dtype),
        np.empty(K, dtype), np.empty(K, dtype), np.empty(K, dtype),
        dquery, dlogit, dvalue, dslots, dusage, dage,
    )  # fmt: skip
