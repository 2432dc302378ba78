"""One step of an external memory of slots, read by content and written one slot a step under a gate.

Every step first reads what earlier steps have written, then writes. With gate g, value v, target slot k* and the slots'
weights w:

    read    a_k = w_k exp(M_k . q) / sum_j w_j exp(M_j . q)      r = sum_k a_k M_k      (r = 0 if nothing is written)
    write   M_k* = (keep w_k* M_k* + g v) / w'_k*                age_k* = (1 - g) (age_k* + 1), other ages + 1

Rule "classic", as published: w = 1, keep = (1 - g)(1 - decay), usage u_k* += g, and k* is the slot of least usage.
Rule "recent": w is the usage, an occupancy with w' = w + (1 - w) g, and keep = (1 - g)(1 - decay g). The first write to
an empty slot is stored in full and has weight g; later writes blend. k* is the first slot that is less than half
occupied, or else the one that was not written for longest (least recently used, as in ELMUR). Under both rules a write
with gate 0 and no decay changes no bit.

Axis letters: B environments, K slots, D slot size.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["recent", "classic"]

SHUT = -20.0
"""A gate with a lower logit, below 2e-9, counts as 0: gradients divided by the square of such a weight overflow."""


class Slots(NamedTuple):
    """The memory of B environments; all zeros at the start of an episode."""

    slots: Tensor  # [B, K, D] M
    usage: Tensor  # [B, K] sum of the gates (classic), or occupancy in [0, 1] (recent)
    age: Tensor  # [B, K] steps since the last write, in so far as its gate was open


def slots_read(query_BD: Tensor, memory: Slots, rule: Rule) -> Tensor:
    """The vector read from the memory, r [B, D]."""
    attention_BK = slots_attention((memory.slots @ query_BD.unsqueeze(2)).squeeze(2), read_weight(memory.usage, rule))
    return (attention_BK.unsqueeze(1) @ memory.slots).squeeze(1)


def slots_write(logit_B: Tensor, value_BD: Tensor, memory: Slots, decay: float, rule: Rule) -> Slots:
    """The memory after a write under gate sigmoid(logit)."""
    logit_B = shut(logit_B)
    gate_B1, free_B1 = logit_B.sigmoid().unsqueeze(1), (-logit_B).sigmoid().unsqueeze(1)
    target_BK = one_hot(slots_target(memory.usage, memory.age, rule), memory)
    usage_BK = memory.usage + target_BK * gate_B1
    age_BK = (memory.age + 1) * torch.where(target_BK, free_B1, 1.0)
    left_BK, decayed_B1 = free_B1, 1.0 - decay * torch.ones_like(gate_B1)
    if rule == "recent":
        weight_BK = read_weight(memory.usage, rule)
        usage_BK = torch.where(target_BK, weight_BK * free_B1 + gate_B1, weight_BK)
        # the old content's share; 1 - share is g / w', without a difference of large gradients where w is small
        left_BK, decayed_B1 = weight_BK * free_B1 / divisor(usage_BK), 1 - decay * gate_B1
        target_BK = target_BK & (usage_BK > 0)
    left_BK1 = left_BK.unsqueeze(2)
    written_BKD = left_BK1 * decayed_B1.unsqueeze(2) * memory.slots + (1 - left_BK1) * value_BD.unsqueeze(1)
    slots_BKD = torch.where(target_BK.unsqueeze(2), written_BKD, memory.slots)
    return Slots(slots_BKD, usage_BK, age_BK)


def slots_target(usage_BK: Tensor, age_BK: Tensor, rule: Rule) -> Tensor:
    """The index of the slot to write to, [B]; among equals the first."""
    return (-usage_BK if rule == "classic" else torch.where(usage_BK < 0.5, torch.inf, age_BK)).argmax(1)


def one_hot(target_B: Tensor, memory: Slots) -> Tensor:
    """bool [B, K], true at the target."""
    return F.one_hot(target_B, memory.usage.shape[1]).bool()


def shut(logit: Tensor) -> Tensor:
    """The logit, with -inf where the gate counts as 0."""
    return logit.masked_fill(logit < SHUT, -torch.inf)


def read_weight(usage: Tensor, rule: Rule) -> Tensor:
    """The weight w of each slot."""
    return usage.clamp(0, 1) if rule == "recent" else torch.ones_like(usage)


def divisor(weight: Tensor) -> Tensor:
    """The weight, but 1 for empty slots, which have nothing to be divided."""
    return torch.where(weight > 0, weight, 1.0)


def slots_attention(score: Tensor, weight: Tensor) -> Tensor:
    """Softmax over the last axis with each exponential multiplied by its weight; zeros if all weights are zero."""
    log = (score + divisor(weight).log()).masked_fill(weight <= 0, -torch.inf)
    share = (log - log.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(log.dtype).min)).exp()
    return share / share.sum(-1, keepdim=True).clamp(min=1)
