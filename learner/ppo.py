"""PPO on one shard of one minibatch: cut into windows, scan, loss, gradient.

Legend: N sequences, T steps, K window steps, W windows.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from controllers import Policy
from learner.batch import SequenceBatch
from learner.losses import clipped_policy_loss, masked_sum, value_loss
from learner.returns import Returns
from learner.settings import LearnerSettings
from learner.windows import cut, window_carries


class ShardResult(NamedTuple):
    """One shard's share of a minibatch."""

    gradients: Sequence[Tensor | None]  # in the order of the policy's parameters
    sums: dict[str, float]  # of losses and signals over the shard's steps
    ratio_error: float  # max |ratio - 1|
    seconds: tuple[float, float, float]  # windows, forward, backward


def shard_gradients(
    policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns, rows: Tensor, count: int
) -> ShardResult:
    """Loss and gradients of the sequences `rows` [n], as their share of a minibatch of `count` steps.

    The shares of a minibatch's shards add up to its mean loss and its gradient.
    """
    T = batch.length
    plan = s.plan(T)
    K = plan.window
    started = perf_counter()
    part = batch.rows(rows)
    observations_NT = {name: x[:, :T] for name, x in part.observations.items()}
    resets_NT = part.resets[:, :T]
    carry = window_carries(policy, plan, observations_NT, resets_NT, part.carries, part.carry_stride)
    mask = cut(part.valid, K)
    observations = {name: cut(x, K) for name, x in observations_NT.items()}
    resets, actions = cut(resets_NT, K), cut(part.actions, K)
    old_log_probs, old_values = cut(part.log_probs, K), cut(part.values[:, :T], K)
    advantages, targets = cut(returns.advantages[rows], K), cut(returns.targets[rows], K)
    cut_done = perf_counter()

    out = policy.scan(observations, resets, carry)
    log_probs = policy.action_head.log_prob(out.parameters_TBA, actions)
    surrogate = clipped_policy_loss(log_probs, old_log_probs, advantages, s.clip)
    errors = value_loss(out.value_TB, old_values, targets, s.value_clip)
    entropy = policy.action_head.entropy(out.parameters_TBA)
    terms = {
        "policy_loss": surrogate.loss,
        "value_loss": errors,
        "entropy": entropy,
        "kl": surrogate.kl,
        "clip_fraction": surrogate.clipped,
        **out.signals,
    }
    penalty = policy.controller.penalty(out.signals, mask)
    if penalty is not None:
        terms["penalty"] = penalty
    sums = {name: masked_sum(term, mask) for name, term in terms.items()}
    loss = sums["policy_loss"] + s.value_coef * sums["value_loss"] - s.entropy_coef * sums["entropy"]
    loss = (loss + sums.get("penalty", 0.0)) / count
    forward_done = perf_counter()

    gradients = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    with torch.no_grad():
        difference = torch.where(mask, (log_probs - old_log_probs).exp() - 1, 0.0)
    return ShardResult(
        gradients,
        dict(zip(sums, torch.stack(list(sums.values())).detach().tolist(), strict=True)),
        float(difference.abs().max()),
        (cut_done - started, forward_done - cut_done, perf_counter() - forward_done),
    )
