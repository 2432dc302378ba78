"""The gradient of a shard of a minibatch, piece by piece, and in pieces of whole sequences perhaps chunk by chunk.

A chunk is some steps of whole sequences. With activation checkpointing (Chen et al. 2016) the activations of one chunk
are kept at a time: a first pass without gradient yields the carry before each chunk, then the chunks are computed again
from the last to the first, each handing the gradient of its first carry to the one before. Where gradients are cut
between all chunks there is nothing to hand on, and no first pass.

Legend: B sequences, K window steps, W windows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Carry, Policy
from mneme.learner.auxiliary_loss import AuxiliaryLoss, SignalSums
from mneme.learner.batch import SequenceBatch
from mneme.learner.losses import clipped_policy_loss, masked_sum
from mneme.learner.objective import Number, Steps
from mneme.learner.ppo import loss_of, steps_of, units
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings, WindowPlan
from mneme.learner.windows import Piece, pieces, taken, windows_of
from mneme.rollout_workers.stopwatch import Stopwatch


class ShardResult(NamedTuple):
    """One shard's share of a minibatch."""

    gradients: Sequence[Tensor | None]  # in the order of the policy's parameters
    sums: dict[str, float]  # of losses and signals over the shard's steps
    ratio_error: float  # max |ratio - 1|
    seconds: dict[str, float]  # "windows", "forward", "backward"


def shard_gradients(
    policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns, rows: Tensor, count: int
) -> ShardResult:
    """Loss and gradients of the sequences `rows` [n], as their share of a minibatch of `count` steps.

    The shares of a minibatch's shards add up to its mean loss and its gradient, and so do those of a shard's pieces and
    of their chunks.
    """
    plan, shard = s.plan(batch.length), _Shard(policy, s, count)
    for part in rows.tensor_split(min(s.gradient_accumulation, len(rows))):
        for group in pieces(policy, plan, part, batch.length):
            auxiliary = None
            if policy.controller.has_auxiliary_loss and len(group) > 1:
                with shard.watch("forward"):
                    auxiliary = _auxiliary_loss(policy, s, batch, group)
            for piece in group:
                with shard.watch("windows"):
                    steps, carry = steps_of(policy, plan, batch, returns, piece)
                if plan.chunk < plan.window:
                    # Every chunk begins at a cut, unless cuts are counted from where an episode begins.
                    apart = plan.cut_every <= (1 if batch.packed else plan.chunk)
                    shard.add_in_chunks(plan, steps, carry, units(batch, piece), apart)
                else:
                    shard.add(steps, carry, units(batch, piece), auxiliary)
                auxiliary = auxiliary and auxiliary.counted()  # with the first piece
    return shard.result()


@torch.no_grad()
def kl_sum(policy: Policy, s: LearnerSettings, batch: SequenceBatch, rows: Tensor) -> float:
    """KL(policy of the batch's log-probabilities || this policy), in nats, over the valid steps of `rows` [n].

    It is estimated from the actions taken, as in `clipped_policy_loss`.
    """
    plan, total = s.plan(batch.length), torch.zeros((), device=batch.valid.device)
    for group in pieces(policy, plan, rows, batch.length):
        for piece in group:
            windows = windows_of(policy, plan, batch, piece)
            actions, before = (taken(x, piece, plan.window) for x in (batch.actions, batch.log_probs))
            carry = windows.carry
            for start in range(0, plan.window, plan.chunk):
                span = slice(start, start + plan.chunk)
                observations = {name: x[span] for name, x in windows.observations.items()}
                out = policy.scan(observations, windows.resets[span], carry)
                carry = out.carry
                now = policy.action_distribution.log_prob(out.parameters_TBA, actions[span])
                kl = clipped_policy_loss(now, before[span], torch.zeros_like(now), s.clip_range).kl
                total += masked_sum(kl, windows.mask[span])
    return float(total)


class _Shard:
    """Gradients and sums of the pieces that have been added."""

    def __init__(self, policy: Policy, settings: LearnerSettings, count: int) -> None:
        self.watch = Stopwatch("windows", "forward", "backward")
        self._policy, self._settings, self._count = policy, settings, count
        self._parameters = list(policy.parameters())
        self._gradients: list[Tensor | None] = [None] * len(self._parameters)
        self._sums: dict[str, Number] = {}
        self._ratio_errors: list[Number] = []

    def add(self, steps: Steps, carry: Carry, sequences: int, auxiliary: AuxiliaryLoss | None) -> Carry:
        """Add some steps at once; the carry after them."""
        return self._added(steps, carry, sequences, auxiliary, {}, ())[1]

    def add_in_chunks(self, plan: WindowPlan, steps: Steps, carry: Carry, sequences: int, apart: bool) -> None:
        """Add whole sequences, a chunk at a time; `apart`: no gradient goes from chunk to chunk."""
        spans = [slice(start, start + plan.chunk) for start in range(0, plan.window, plan.chunk)]
        carries, auxiliary = [carry], None
        if not apart or self._policy.controller.has_auxiliary_loss:
            with self.watch("forward"):
                carries, said = _first_pass(self._policy, steps, carry, spans, sequences)
                if self._policy.controller.has_auxiliary_loss:
                    auxiliary = AuxiliaryLoss.at(self._policy.controller, said)
        if apart:
            for span in spans:
                carry = self.add(steps.between(span), carry, sequences, auxiliary)
                auxiliary = auxiliary and auxiliary.counted()
            return
        gradient: dict[str, Tensor] = {}  # of the carry after the chunk
        for span, before in zip(reversed(spans), reversed(carries), strict=True):
            leaves = {name: value.detach().requires_grad_() for name, value in before.items()} if span.start else {}
            entering = leaves or before  # the first one's own gradient is that of its traces, if it has any
            found, _ = self._added(
                steps.between(span), entering, sequences, auxiliary, gradient, tuple(leaves.values())
            )
            gradient = dict(zip(leaves, found, strict=True))
            auxiliary = auxiliary and auxiliary.counted()

    def _added(
        self,
        steps: Steps,
        carry: Carry,
        sequences: int,
        auxiliary: AuxiliaryLoss | None,
        after: Carry,
        leaves: tuple[Tensor, ...],
    ) -> tuple[list[Tensor], Carry]:
        """Add some steps, whose last carry has the gradient `after`; the gradients of `leaves`, and the last carry."""
        with self.watch("forward"):
            loss = loss_of(self._policy, self._settings, steps, carry, sequences, auxiliary, 1 / self._count)
        with self.watch("backward"):
            handed_on = [(loss.carry[name] * gradient).sum() for name, gradient in after.items()]
            total = sum(handed_on, loss.total)
            found = torch.autograd.grad(total, [*self._parameters, *leaves], allow_unused=True)
            split = len(self._parameters)
            self._gradients = [_sum(a, b) for a, b in zip(self._gradients, found[:split], strict=True)]
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in loss.sums.items()}
        self._ratio_errors.append(loss.ratio_error)
        of_leaves = [torch.zeros_like(leaf) if d is None else d for leaf, d in zip(leaves, found[split:], strict=True)]
        return of_leaves, {name: value.detach() for name, value in loss.carry.items()}

    def result(self) -> ShardResult:
        """The share of all of it."""
        return ShardResult(
            self._gradients,
            dict(zip(self._sums, _floats(list(self._sums.values())), strict=True)),
            float(np.max(_floats(self._ratio_errors))),
            self.watch.seconds,
        )


@torch.no_grad()
def _first_pass(
    policy: Policy, steps: Steps, carry: Carry, spans: Sequence[slice], sequences: int
) -> tuple[list[Carry], SignalSums]:
    """The carry before each chunk, and the sums of the signals."""
    carries, sums = [], []
    for span in spans:
        carries.append(carry)
        chunk = steps.between(span)
        out = policy.scan(chunk.observations, chunk.resets, carry)
        carry = out.carry
        sums.append(SignalSums.of(out.signals, chunk.mask, sequences, chunk.episode))
    return carries, SignalSums.joined(sums)


def _auxiliary_loss(policy: Policy, s: LearnerSettings, batch: SequenceBatch, group: Sequence[Piece]) -> AuxiliaryLoss:
    """That of sequences worked on in several pieces, from a pass over all of them without gradient."""
    plan, sums = s.plan(batch.length), []
    for piece in group:
        windows = windows_of(policy, plan, batch, piece)
        episode = taken(batch.episodes, piece, plan.window) if batch.packed else None
        with torch.no_grad():
            signals = policy.scan(windows.observations, windows.resets, windows.carry).signals
        sums.append(SignalSums.of(signals, windows.mask, units(batch, piece), episode))
    return AuxiliaryLoss.at(policy.controller, SignalSums.joined(sums))


def _floats(numbers: Sequence[Number]) -> list[float]:
    """The device is waited for once."""
    if all(isinstance(number, float) for number in numbers):
        return list(numbers)  # type: ignore[arg-type]
    return torch.stack([torch.as_tensor(number) for number in numbers]).tolist()


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
