"""The slot memory over time in PyTorch, over chunks of steps; `scans.slots.cell` has the rules.

If queries, gates and values are known for all steps, only the choice of targets is sequential, and has no gradient.
The content of a slot is then linear in the values written to it: w M[t] = exp(s[t]) w M[start] + sum_m g[m]
exp(s[t] - s[m]) v[m] over the writes m to that slot, with s the slot's sum of log keep. So a chunk is matrix products.

Axis letters: T steps, L steps of a chunk (M for its second axis), B environments, K slots, D slot size.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mneme.controllers.scans.resets import cut_carry
from mneme.controllers.scans.slots.cell import (
    Rule,
    Slots,
    divisor,
    one_hot,
    shut,
    slots_attention,
    slots_target,
)


def torch_slots_scan(
    query_TBD: Tensor,
    logit_TB: Tensor,
    value_TBD: Tensor,
    reset_TB: Tensor,
    memory: Slots,
    decay: float,
    rule: Rule,
    chunk: int,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Slots]:
    """`scans.slots.scan.slots_scan`; all numbers must be finite, because a reset multiplies by 0.

    A chunk ends before a step at which the gradient is cut in any environment.
    """
    logit_TB, reads = shut(logit_TB), []
    cuts = set() if cut_TB is None else set(cut_TB.any(1).nonzero()[:, 0].tolist())
    starts = [0]
    for t in range(1, len(reset_TB)):
        if t in cuts or t == starts[-1] + chunk:
            starts.append(t)
    for start, stop in pairwise([*starts, len(reset_TB)]):
        steps = slice(start, stop)
        if cut_TB is not None and start in cuts:
            memory = Slots(**cut_carry(cut_TB[start], memory._asdict()))
        query_BLD, logit_BL, value_BLD, reset_BL = (
            x[steps].transpose(0, 1) for x in (query_TBD, logit_TB, value_TBD, reset_TB)
        )
        read_BLD, memory = _chunk(query_BLD, logit_BL, value_BLD, reset_BL, memory, decay, rule)
        reads.append(read_BLD.transpose(0, 1))
    return torch.cat(reads), memory


def write_in_place(logit_B: Tensor, value_BD: Tensor, memory: Slots, decay: float, rule: Rule) -> None:
    """`slots_write` without autograd, which touches only the slots that are written to."""
    logit_B = shut(logit_B)
    gate_B1, free_B1 = logit_B.sigmoid().unsqueeze(1), (-logit_B).sigmoid().unsqueeze(1)
    target_B1 = slots_target(memory.usage, memory.age, rule).unsqueeze(1)
    usage_B1 = memory.usage.gather(1, target_B1)
    memory.age.add_(1)
    memory.age.scatter_(1, target_B1, memory.age.gather(1, target_B1) * free_B1)
    share_B1, kept = free_B1, 1.0 - decay * torch.ones_like(gate_B1)
    if rule == "recent":
        memory.usage.clamp_(0, 1)
        weight_B1 = usage_B1.clamp(0, 1)
        usage_after_B1 = weight_B1 * free_B1 + gate_B1
        share_B1, kept = weight_B1 * free_B1 / divisor(usage_after_B1), 1 - decay * gate_B1
    else:
        usage_after_B1 = usage_B1 + gate_B1
    memory.usage.scatter_(1, target_B1, usage_after_B1)
    rows_B, target_B = torch.arange(len(target_B1), device=target_B1.device), target_B1.squeeze(1)
    slot_BD = memory.slots[rows_B, target_B]
    written_BD = share_B1 * kept * slot_BD + (1 - share_B1) * value_BD
    if rule == "recent":
        written_BD = torch.where(usage_after_B1 > 0, written_BD, slot_BD)
    memory.slots[rows_B, target_B] = written_BD


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

    def share(keep: Tensor, by: Tensor, seen: Tensor) -> Tensor:
        """Each write's share of its slot [B, ., L], from log keep and divisors [B, ., K]; `seen`: visible writes."""
        left = (keep @ target_BLK.mT - own_BL).masked_fill(~seen, -torch.inf)
        return gate_BL.unsqueeze(1) * left.exp() / (by @ target_BLK.mT)

    # what each step reads
    divisor_BLK = divisor(weight_BLK)
    share_BLM = share(keep_BLK, divisor_BLK, before_BLM)
    start_BLK = start_BLK * keep_BLK.exp() / divisor_BLK
    score_BLK = start_BLK * (query_BLD @ memory.slots.mT) + (share_BLM * (query_BLD @ value_BLD.mT)) @ target_BLK
    attention_BLK = slots_attention(score_BLK, weight_BLK)
    read_BLD = (attention_BLK * start_BLK) @ memory.slots
    read_BLD = read_BLD + (share_BLM * (attention_BLK @ target_BLK.mT)) @ value_BLD

    # the memory after the chunk; a slot to which nothing was ever written stays as it was
    divisor_BK = divisor(weight_BK)
    share_B1L = share(keep_BK.unsqueeze(1), divisor_BK.unsqueeze(1), same[:, -1:])
    start_BK1 = torch.where(weight_BK > 0, start_BK * keep_BK.exp() / divisor_BK, old_B1).unsqueeze(2)
    slots_BKD = start_BK1 * memory.slots + (share_B1L * target_BLK.mT) @ value_BLD
    aged_BLK = torch.where(same[:, -1].unsqueeze(2), free_BK.unsqueeze(1) - free_BLK, -torch.inf)
    return read_BLD, Slots(slots_BKD, usage_BK, memory.age * old_B1 * free_BK.exp() + aged_BLK.exp().sum(1))


@torch.no_grad()
def _targets(gate_BL: Tensor, reset_BL: Tensor, memory: Slots, rule: Rule) -> Tensor:
    """The slot to which each step writes, one-hot bool [B, L, K]."""
    usage_BK, age_BK = memory.usage, memory.age
    targets, ones_B1 = [], torch.ones_like(gate_BL[:, :1])
    for gate_B1, reset_B1 in zip(gate_BL.unsqueeze(2).unbind(1), reset_BL.unsqueeze(2).unbind(1), strict=True):
        usage_BK, age_BK = usage_BK.masked_fill(reset_B1, 0.0), age_BK.masked_fill(reset_B1, 0.0)
        target_BK = one_hot(slots_target(usage_BK, age_BK, rule), memory)
        written_BK = gate_B1 * target_BK
        room_BK = ones_B1 - usage_BK if rule == "recent" else ones_B1
        usage_BK, age_BK = torch.addcmul(usage_BK, room_BK, written_BK), (age_BK + 1) * (1 - written_BK)
        targets.append(target_BK)
    return torch.stack(targets, 1)
