"""PPO on one shard of one minibatch: cut into windows, scan, loss, gradient, one piece after the other.

Legend: B sequences, K window steps, W windows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.learner.auxiliary_loss import AuxiliaryLoss, SignalSums
from mneme.learner.batch import SequenceBatch
from mneme.learner.losses import clipped_policy_loss, masked_sum, value_loss
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings
from mneme.learner.windows import Piece, pieces, taken, windows_of
from mneme.rollout_workers.stopwatch import Stopwatch

SIGNAL = "signal/"
"""Before the names of a controller's signals among metrics, so that none of its own can be taken for ours."""


class ShardResult(NamedTuple):
    """One shard's share of a minibatch."""

    gradients: Sequence[Tensor | None]  # in the order of the policy's parameters
    sums: dict[str, float]  # of losses and signals over the shard's steps
    ratio_error: float  # max |ratio - 1|
    seconds: dict[str, float]  # "windows", "forward", "backward"


class _PieceResult(NamedTuple):
    """One piece's share of a shard; as there, still on the device."""

    gradients: Sequence[Tensor | None]
    sums: dict[str, Tensor]
    ratio_error: Tensor


def shard_gradients(
    policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns, rows: Tensor, count: int
) -> ShardResult:
    """Loss and gradients of the sequences `rows` [n], as their share of a minibatch of `count` steps.

    The shares of a minibatch's shards add up to its mean loss and its gradient, and so do those of a shard's pieces.
    """
    gradients: list[Tensor | None] = [None] * len(list(policy.parameters()))
    sums: dict[str, Tensor] = {}
    ratio_errors, watch = [], Stopwatch("windows", "forward", "backward")
    for group in pieces(policy, s.plan(batch.length), rows, batch.length):
        with watch("forward"):
            in_pieces = policy.controller.has_auxiliary_loss and len(group) > 1
            auxiliary = _auxiliary_loss(policy, s, batch, group) if in_pieces else None
        for piece in group:
            part = _piece_gradients(policy, s, batch, returns, piece, count, auxiliary, watch)
            gradients = [_sum(total, gradient) for total, gradient in zip(gradients, part.gradients, strict=True)]
            sums = {name: sums[name] + x if name in sums else x for name, x in part.sums.items()}
            ratio_errors.append(part.ratio_error)
            auxiliary = auxiliary and auxiliary._replace(
                total=torch.zeros_like(auxiliary.total)
            )  # counted with the first piece
    return ShardResult(
        gradients,
        dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)),
        float(torch.stack(ratio_errors).max()),
        watch.seconds,
    )


@torch.no_grad()
def kl_sum(policy: Policy, s: LearnerSettings, batch: SequenceBatch, rows: Tensor) -> float:
    """KL(policy of the batch's log-probabilities || this policy), summed over the valid steps of `rows` [n], in nats.

    It is estimated from the actions taken, as in `clipped_policy_loss`.
    """
    plan = s.plan(batch.length)
    total = torch.zeros((), device=rows.device)
    for group in pieces(policy, plan, rows, batch.length):
        for piece in group:
            windows = windows_of(policy, plan, batch, piece)
            out = policy.scan(windows.observations, windows.resets, windows.carry)  # no gradient, so no cuts
            now = policy.action_distribution.log_prob(out.parameters_TBA, taken(batch.actions, piece, plan.window))
            before = taken(batch.log_probs, piece, plan.window)
            total += masked_sum(clipped_policy_loss(now, before, torch.zeros_like(now), s.clip_range).kl, windows.mask)
    return float(total)


def _piece_gradients(
    policy: Policy,
    s: LearnerSettings,
    batch: SequenceBatch,
    returns: Returns,
    piece: Piece,
    count: int,
    auxiliary: AuxiliaryLoss | None,
    watch: Stopwatch,
) -> _PieceResult:
    """Without an auxiliary loss it is that of the piece itself, which then holds whole sequences."""
    plan = s.plan(batch.length)
    K, T = plan.window, batch.length
    with watch("windows"):
        windows = windows_of(policy, plan, batch, piece)
        mask, actions, old_log_probs = windows.mask, taken(batch.actions, piece, K), taken(batch.log_probs, piece, K)
        old_values = taken(batch.values[:, :T], piece, K)
        advantages, targets = taken(returns.advantages, piece, K), taken(returns.targets, piece, K)
    with watch("forward"):
        out = policy.scan(windows.observations, windows.resets, windows.carry, windows.cuts)
        log_probs = policy.action_distribution.log_prob(out.parameters_TBA, actions)
        surrogate = clipped_policy_loss(log_probs, old_log_probs, advantages, s.clip_range)
        terms = {
            "policy_loss": surrogate.loss,
            "value_loss": value_loss(out.value_TB, old_values, targets, s.clip_range_vf),
            "entropy": policy.action_distribution.entropy(out.parameters_TBA),
            "kl_minibatches": surrogate.kl,
            "clip_fraction": surrogate.clipped,
            **{f"{SIGNAL}{name}": signal for name, signal in out.signals.items()},
        }
        sums = {name: masked_sum(term, mask) for name, term in terms.items()}
        loss = sums["policy_loss"] + s.vf_coef * sums["value_loss"] - s.ent_coef * sums["entropy"]
        if policy.controller.has_auxiliary_loss:
            said = SignalSums.of(out.signals, mask, len(piece.rows))
            auxiliary = auxiliary or AuxiliaryLoss.at(policy.controller, said)
            sums["auxiliary_loss"] = auxiliary.total
            loss = loss + auxiliary.total + auxiliary.through(said)
    with watch("backward"):
        gradients = torch.autograd.grad(loss / count, list(policy.parameters()), allow_unused=True)
        with torch.no_grad():
            difference = torch.where(mask, (log_probs - old_log_probs).exp() - 1, 0.0)
    return _PieceResult(gradients, {name: total.detach() for name, total in sums.items()}, difference.abs().max())


def _auxiliary_loss(policy: Policy, s: LearnerSettings, batch: SequenceBatch, group: Sequence[Piece]) -> AuxiliaryLoss:
    """That of sequences worked on in several pieces, from a pass over all of them without gradient."""
    plan, whole = s.plan(batch.length), None
    for piece in group:
        windows = windows_of(policy, plan, batch, piece)
        with torch.no_grad():
            signals = policy.scan(windows.observations, windows.resets, windows.carry).signals
        said = SignalSums.of(signals, windows.mask, len(piece.rows))
        whole = said if whole is None else whole.plus(said)
    assert whole is not None
    return AuxiliaryLoss.at(policy.controller, whole)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
