"""The anchor pass: one scan without gradient over whole sequences under the current weights, before the epochs.

It yields refreshed carries, reference log-probabilities (so that the first ratio is exactly 1) and values, and, against
what was stored, how stale the stored carries were.

Legend: N sequences, T steps, S carries, one every `batch.carry_stride` steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from controllers import Carry, Policy
from learner.batch import SequenceBatch


class Anchor(NamedTuple):
    """What the current weights make of a batch."""

    log_probs: Tensor  # [N, T] of the actions taken
    values: Tensor  # [N, T + 1]
    carries: Carry  # name -> [N, S, ...], incoming, at the steps where they were stored


class Staleness(NamedTuple):
    """How far stored carries are from those that the current weights give; NaN where only the first was stored."""

    distance: float  # mean over carries of ||stored - recomputed|| / ||recomputed||
    kl: float  # mean KL(policy from the recomputed carry || policy from the stored one), nats


@torch.no_grad()
def anchor_pass(policy: Policy, batch: SequenceBatch) -> Anchor:
    """Scan each sequence from its first stored carry, in chunks that end where a carry was stored.

    The first carry itself cannot be refreshed: what led to it did not travel along.
    """
    T, stride = batch.length, batch.carry_stride
    carry = {name: c[:, 0] for name, c in batch.carries.items()}
    carries: dict[str, list[Tensor]] = {name: [] for name in carry}
    log_probs, values = [], []
    for start in range(0, T, stride):
        for name, c in carry.items():
            carries[name].append(c)
        steps = slice(start, min(start + stride, T))
        observations = {name: x[:, steps].transpose(0, 1) for name, x in batch.observations.items()}
        out = policy.scan(observations, batch.resets[:, steps].transpose(0, 1), carry)
        carry = out.carry
        log_probs.append(policy.action_head.log_prob(out.parameters_TBA, batch.actions[:, steps].transpose(0, 1)))
        values.append(out.value_TB)
    last = {name: x[:, T] for name, x in batch.observations.items()}
    values.append(policy.value(last, batch.resets[:, T], carry)[None])
    return Anchor(
        torch.cat(log_probs).t(),
        torch.cat(values).t(),
        {name: torch.stack(c, 1) for name, c in carries.items()},
    )


@torch.no_grad()
def measure_staleness(policy: Policy, batch: SequenceBatch, anchor: Anchor) -> Staleness:
    """Compare the carries stored after a sequence's first step with the anchored ones at the same steps."""
    stored = {name: carry[:, 1:].flatten(0, 1) for name, carry in batch.carries.items()}  # [N * (S - 1), ...]
    recomputed = {name: carry[:, 1:].flatten(0, 1) for name, carry in anchor.carries.items()}
    if not stored or len(next(iter(stored.values()))) == 0:
        return Staleness(float("nan"), float("nan"))
    flat_stored = torch.cat([carry.flatten(1) for carry in stored.values()], dim=1)
    flat_recomputed = torch.cat([carry.flatten(1) for carry in recomputed.values()], dim=1)
    distance = ((flat_stored - flat_recomputed).norm(dim=1) / flat_recomputed.norm(dim=1).clamp_min(1e-8)).mean()

    stride, T = batch.carry_stride, batch.length
    observations = {name: x[:, stride:T:stride].flatten(0, 1)[None] for name, x in batch.observations.items()}
    resets = batch.resets[:, stride:T:stride].flatten(0, 1)[None]
    fresh, stale = (policy.scan(observations, resets, carry).parameters_TBA for carry in (recomputed, stored))
    return Staleness(float(distance), float(policy.action_head.kl(fresh, stale).mean()))
