"""An external memory of slots: read by content, written one slot a step under a gate; over one step, or over chunks.

Every step reads what the steps before left, then writes. With gate g, value v, target slot k* and its weight w:

    read    a_k = w_k exp(M_k . q) / sum_j w_j exp(M_j . q)      r = sum_k a_k M_k      (nothing written: r = 0)
    write   M_k* = (keep w_k* M_k* + g v) / w'_k*                age_k* = (1 - g) (age_k* + 1), others one more

rule "classic", as published: w = 1, keep = (1 - g)(1 - decay), usage u_k* += g, and k* is the slot used least, ever.
rule "recent": w is the usage, which is the occupancy w' = w + (1 - w) g, and keep = (1 - g)(1 - decay g). So what is
written first into an empty slot stands there in full, unless the gate is shut, and counts as little as the gate was
open; later writes blend. k* is the first slot less than half occupied, or else the one not written for longest (the
least recently used, as in ELMUR). Under both, a write with gate 0 and no decay changes no bit.

If queries, gates and values are known for all steps, only the choice of targets is sequential, and that needs no
gradient. What a slot holds is then linear in the values written: w M[t] = exp(s[t]) w M[start] + sum_m g[m]
exp(s[t] - s[m]) v[m] over the writes m to that slot, with s the slot's sum of log keep; a chunk is matrix products.

Axis letters: T time, L steps of a chunk (M where it meets itself), B lanes, K slots, D slot size.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["recent", "classic"]

SHUT = -20.0
"""A gate with a lower logit, of less than 2e-9, is 0: slopes by a weight as small as it overflow when squared."""


class Slots(NamedTuple):
    """The memory of B lanes; a lane that starts afresh has zeros."""

    slots: Tensor  # [B, K, D] M
    usage: Tensor  # [B, K] sum of the gates (classic), or occupancy in [0, 1] (recent)
    age: Tensor  # [B, K] steps since the last write, each write counting as far as its gate was open


def slots_read(query_BD: Tensor, memory: Slots, rule: Rule) -> Tensor:
    """r [B, D]."""
    attention_BK = _attention((memory.slots @ query_BD.unsqueeze(2)).squeeze(2), _weight(memory.usage, rule))
    return (attention_BK.unsqueeze(1) @ memory.slots).squeeze(1)


def slots_write(logit_B: Tensor, value_BD: Tensor, memory: Slots, decay: float, rule: Rule) -> Slots:
    """The memory after a write under gate sigmoid(logit)."""
    logit_B = _shut(logit_B)
    gate_B1, free_B1 = logit_B.sigmoid().unsqueeze(1), (-logit_B).sigmoid().unsqueeze(1)
    target_BK = _target(memory.usage, memory.age, rule)
    usage_BK = memory.usage + target_BK * gate_B1
    age_BK = (memory.age + 1) * torch.where(target_BK, free_B1, 1.0)
    left_BK, decayed_B1 = free_B1, 1.0 - decay * torch.ones_like(gate_B1)
    if rule == "recent":
        weight_BK = _weight(memory.usage, rule)
        usage_BK = torch.where(target_BK, weight_BK * free_B1 + gate_B1, weight_BK)
        # the share of what was there; 1 - share is g / w' without a difference of large slopes where w is small
        left_BK, decayed_B1 = weight_BK * free_B1 / _divisor(usage_BK), 1 - decay * gate_B1
        target_BK = target_BK & (usage_BK > 0)
    left_BK1 = left_BK.unsqueeze(2)
    written_BKD = left_BK1 * decayed_B1.unsqueeze(2) * memory.slots + (1 - left_BK1) * value_BD.unsqueeze(1)
    slots_BKD = torch.where(target_BK.unsqueeze(2), written_BKD, memory.slots)
    return Slots(slots_BKD, usage_BK, age_BK)


def slots_scan(
    query_TBD: Tensor,
    logit_TB: Tensor,
    value_TBD: Tensor,
    reset_TB: Tensor,
    memory: Slots,
    decay: float,
    rule: Rule,
    chunk: int,
    backend: str = "torch",
    in_place: bool = False,
) -> tuple[Tensor, Slots]:
    """All steps: r [T, B, D], and the memory after the last.

    Where `reset_TB` is true the lane's memory is emptied before that step. Differentiable in every tensor but the
    flags. `backend` is "torch", which computes `chunk` steps at once and needs all numbers finite, or "numba" on a CPU,
    which with `in_place` and without autograd overwrites the given memory.
    """
    memory = memory._replace(usage=_weight(memory.usage, rule) if rule == "recent" else memory.usage)
    if backend == "numba":
        from mneme.controllers.scans.compiled_slots import compiled_slots_scan  # here, as not all have numba

        inputs = query_TBD, logit_TB, value_TBD, reset_TB
        return compiled_slots_scan(*inputs, memory, decay, rule == "recent", in_place)
    logit_TB, reads = _shut(logit_TB), []
    for t in range(0, len(reset_TB), chunk):
        steps = slice(t, t + chunk)
        query_BLD, logit_BL, value_BLD, reset_BL = (
            x[steps].transpose(0, 1) for x in (query_TBD, logit_TB, value_TBD, reset_TB)
        )
        read_BLD, memory = _chunk(query_BLD, logit_BL, value_BLD, reset_BL, memory, decay, rule)
        reads.append(read_BLD.transpose(0, 1))
    return torch.cat(reads), memory


def _chunk(
    query_BLD: Tensor, logit_BL: Tensor, value_BLD: Tensor, reset_BL: Tensor, memory: Slots, decay: float, rule: Rule
) -> tuple[Tensor, Slots]:
    segment_BL = reset_BL.cumsum(1)
    same = (segment_BL.unsqueeze(2) == segment_BL.unsqueeze(1)).tril()
    before_BLM, ever_B = same.tril(-1), segment_BL[:, -1] == 0
    first_BL1, old_B1 = (segment_BL == 0).unsqueeze(2).to(query_BLD.dtype), ever_B.unsqueeze(1)
    gate_BL, log_free_BL = logit_BL.sigmoid(), F.logsigmoid(-logit_BL)
    target_BLK = _targets(gate_BL, reset_BL, memory, rule).to(query_BLD.dtype)

    # sums over the writes to each slot before a step, and up to the chunk's end
    def until(x_BL: Tensor) -> tuple[Tensor, Tensor]:
        x_BLK = x_BL.unsqueeze(2) * target_BLK
        return before_BLM.to(x_BL.dtype) @ x_BLK, (same[:, -1:].to(x_BL.dtype) @ x_BLK).squeeze(1)

    free_BLK, free_BK = until(log_free_BL)
    usage_BK = memory.usage * old_B1 + until(gate_BL)[1]
    start_BLK, start_BK = first_BL1.expand_as(free_BLK), old_B1.to(query_BLD.dtype).expand_as(free_BK)
    weight_BLK, weight_BK = torch.ones_like(free_BLK), torch.ones_like(free_BK)
    log_keep_BL = log_free_BL + torch.log1p(-decay * (gate_BL if rule == "recent" else torch.ones_like(gate_BL)))
    if rule == "recent":
        start_BLK, start_BK = start_BLK * memory.usage.unsqueeze(1), start_BK * memory.usage
        weight_BLK = start_BLK * free_BLK.exp() - free_BLK.expm1()
        usage_BK = weight_BK = start_BK * free_BK.exp() - free_BK.expm1()
    keep_BLK, keep_BK = until(log_keep_BL)
    own_BL = ((keep_BLK * target_BLK).sum(2) + log_keep_BL).unsqueeze(1)  # up to and with the write itself

    def share(keep: Tensor, divisor: Tensor, seen: Tensor) -> Tensor:
        """How much of its slot each write makes, [B, ., L], from [B, ., K] and which writes are seen."""
        left = (keep @ target_BLK.mT - own_BL).masked_fill(~seen, -torch.inf)
        return gate_BL.unsqueeze(1) * left.exp() / (divisor @ target_BLK.mT)

    # what each step reads
    divisor_BLK = _divisor(weight_BLK)
    share_BLM = share(keep_BLK, divisor_BLK, before_BLM)
    start_BLK = start_BLK * keep_BLK.exp() / divisor_BLK
    score_BLK = start_BLK * (query_BLD @ memory.slots.mT) + (share_BLM * (query_BLD @ value_BLD.mT)) @ target_BLK
    attention_BLK = _attention(score_BLK, weight_BLK)
    read_BLD = (attention_BLK * start_BLK) @ memory.slots
    read_BLD = read_BLD + (share_BLM * (attention_BLK @ target_BLK.mT)) @ value_BLD

    # what the chunk leaves; a slot that nothing was ever written to is left as it was
    divisor_BK = _divisor(weight_BK)
    share_B1L = share(keep_BK.unsqueeze(1), divisor_BK.unsqueeze(1), same[:, -1:])
    start_BK1 = torch.where(weight_BK > 0, start_BK * keep_BK.exp() / divisor_BK, old_B1).unsqueeze(2)
    slots_BKD = start_BK1 * memory.slots + (share_B1L * target_BLK.mT) @ value_BLD
    aged_BLK = torch.where(same[:, -1].unsqueeze(2), free_BK.unsqueeze(1) - free_BLK, -torch.inf)
    return read_BLD, Slots(slots_BKD, usage_BK, memory.age * old_B1 * free_BK.exp() + aged_BLK.exp().sum(1))


@torch.no_grad()
def _targets(gate_BL: Tensor, reset_BL: Tensor, memory: Slots, rule: Rule) -> Tensor:
    """Which slot each step writes to, one-hot bool [B, L, K]."""
    usage_BK, age_BK = memory.usage, memory.age
    targets, ones_B1 = [], torch.ones_like(gate_BL[:, :1])
    for gate_B1, reset_B1 in zip(gate_BL.unsqueeze(2).unbind(1), reset_BL.unsqueeze(2).unbind(1), strict=True):
        usage_BK, age_BK = usage_BK.masked_fill(reset_B1, 0.0), age_BK.masked_fill(reset_B1, 0.0)
        target_BK = _target(usage_BK, age_BK, rule)
        written_BK = gate_B1 * target_BK
        room_BK = ones_B1 - usage_BK if rule == "recent" else ones_B1
        usage_BK, age_BK = torch.addcmul(usage_BK, room_BK, written_BK), (age_BK + 1) * (1 - written_BK)
        targets.append(target_BK)
    return torch.stack(targets, 1)


def _target(usage_BK: Tensor, age_BK: Tensor, rule: Rule) -> Tensor:
    """The slot to write to, one-hot bool [B, K]; among equals the first."""
    rank_BK = -usage_BK if rule == "classic" else torch.where(usage_BK < 0.5, torch.inf, age_BK)
    return F.one_hot(rank_BK.argmax(1), rank_BK.shape[1]).bool()


def _shut(logit: Tensor) -> Tensor:
    return logit.masked_fill(logit < SHUT, -torch.inf)


def _weight(usage: Tensor, rule: Rule) -> Tensor:
    """How much each slot counts for reading."""
    return usage.clamp(0, 1) if rule == "recent" else torch.ones_like(usage)


def _divisor(weight: Tensor) -> Tensor:
    """The weight, with 1 for empty slots, to which nothing was written that could be divided."""
    return torch.where(weight > 0, weight, 1.0)


def _attention(score: Tensor, weight: Tensor) -> Tensor:
    """Softmax over the last axis in which each score counts as often as its weight says; zeros if all weights are."""
    log = (score + _divisor(weight).log()).masked_fill(weight <= 0, -torch.inf)
    share = (log - log.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(log.dtype).min)).exp()
    return share / share.sum(-1, keepdim=True).clamp(min=1)
