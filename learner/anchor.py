"""The anchor pass: one scan without gradient over whole sequences under the current weights, before the epochs.

It yields refreshed carries, reference log-probabilities (so that the first ratio is exactly 1) and values, those of the
true final observations of episodes that were cut short included.

Legend: B sequences, T steps, S carries, one every `batch.carry_stride` steps, M final observations, L steps at most
from a carry or a reset to one of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Carry, Observation, Policy
from mneme.learner.batch import SequenceBatch


class Anchor(NamedTuple):
    """The current weights' outputs and carries for a batch."""

    log_probs: Tensor  # [B, T] of the actions taken
    values: Tensor  # [B, T + 1]
    final_values: Tensor  # [B, T] of the true final observation where an episode was cut short, else 0
    carries: Carry  # name -> [B, S, ...], incoming, at the steps where they were stored

    @classmethod
    def joined(cls, parts: "Sequence[Anchor]") -> "Anchor":
        """The anchors of parts of a batch as the whole batch's."""
        return cls(
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.values for part in parts]),
            torch.cat([part.final_values for part in parts]),
            {name: torch.cat([part.carries[name] for part in parts]) for name in parts[0].carries},
        )


@torch.no_grad()
def anchor_pass(policy: Policy, batch: SequenceBatch) -> Anchor:
    """Scan each sequence from its first carry, in chunks that end where a carry was stored.

    The first carry is renewed from the steps of the past, where the batch has them; otherwise it stays as stored.
    """
    T, stride = batch.length, batch.carry_stride
    if batch.past is None:
        first = batch.stored.at(torch.arange(batch.sequences), slice(0, 1))
        carry = {name: c[:, 0] for name, c in first.items()}
    else:
        past = {name: x.transpose(0, 1) for name, x in batch.past.observations.items()}
        carry = policy.scan(past, batch.past.resets.t(), batch.past.carries).carry
    carries: dict[str, list[Tensor]] = {name: [] for name in carry}
    log_probs, values = [], []
    for start in range(0, T, stride):
        for name, c in carry.items():
            carries[name].append(c)
        steps = slice(start, min(start + stride, T))
        observations = {name: x[:, steps].transpose(0, 1) for name, x in batch.observations.items()}
        out = policy.scan(observations, batch.resets[:, steps].transpose(0, 1), carry)
        carry = out.carry
        log_probs.append(
            policy.action_distribution.log_prob(out.parameters_TBA, batch.actions[:, steps].transpose(0, 1))
        )
        values.append(out.value_TB)
    last = {name: x[:, T] for name, x in batch.observations.items()}
    values.append(policy.value(last, batch.resets[:, T], carry)[None])
    stacked = {name: torch.stack(c, 1) for name, c in carries.items()}
    return Anchor(torch.cat(log_probs).t(), torch.cat(values).t(), _final_values(policy, batch, stacked), stacked)


def _final_values(policy: Policy, batch: SequenceBatch, carries_BS: Carry) -> Tensor:
    """[B, T] values of the true final observations, each read with the carry that its lane had there.

    That carry stands nowhere, as the episode after it resets it. So what led to it, from the last stored carry or, if
    that is nearer, from the episode's start, is scanned once more with the final observation behind it.
    """
    values_BT = torch.zeros_like(batch.final_values)
    n, t = batch.cut_short.nonzero(as_tuple=True)  # [M]
    if not len(n):
        return values_BT
    T, stride = batch.length, batch.carry_stride
    opened_BT = torch.where(batch.resets[:, :T], torch.arange(T, device=n.device), 0).cummax(1).values
    start = torch.maximum(t // stride * stride, opened_BT[n, t])  # or the last step that opened an episode
    # Those of like length at once, so that one long way costs the short ones no padding: at most B * T steps, twice.
    magnitude = (t - start + 1).log2().floor()
    for like in magnitude.unique():
        m = (magnitude == like).nonzero(as_tuple=True)[0]
        values_BT[n[m], t[m]] = _read(policy, batch, carries_BS, n[m], t[m], start[m])
    return values_BT


def _read(policy: Policy, batch: SequenceBatch, carries_BS: Carry, n: Tensor, t: Tensor, start: Tensor) -> Tensor:
    """[M] values of the true final observations behind steps `t` [M] of sequences `n` [M], scanned from `start` [M]."""
    count = t - start + 1  # steps before the final observation, L at most
    m = torch.arange(len(n), device=n.device)
    steps_LM = torch.minimum(start + torch.arange(int(count.max()) + 1, device=n.device)[:, None], t)
    observations: Observation = {}
    for name, x in batch.observations.items():
        observations[name] = x[n, steps_LM]  # [L + 1, M, ...]
        observations[name][count, m] = batch.final_observations[name][batch.final_index[n, t]]
    resets_LM = batch.resets[n, steps_LM]
    resets_LM[count, m] = False
    stored = t // batch.carry_stride
    out = policy.scan(observations, resets_LM, {name: c[n, stored] for name, c in carries_BS.items()})
    return out.value_TB[count, m]
