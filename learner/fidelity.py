"""The bias of a gradient that is cut: how it lies beside that of full backpropagation, and how far back it reaches.

Legend: B sequences, T steps, H numbers of a carry.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import shard_gradients
from mneme.learner.group import Group
from mneme.learner.ppo import loss_of, steps_of, units
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings
from mneme.learner.windows import Piece

_CORE = "controller."
_TARGETS = 8  # steps of a sequence whose losses are followed back


class Fidelity(NamedTuple):
    """A mode's gradient g beside that of full backpropagation through time, f, on the same batch; f has no traces."""

    cosine: float  # g . f / (|g| |f|)
    norm_ratio: float  # |g| / |f|
    core_cosine: float  # the same for the controller's parameters alone
    core_norm_ratio: float

    def metrics(self) -> dict[str, float]:
        """By the names of the metrics."""
        return {f"fidelity/{name}": value for name, value in self._asdict().items()}


def gradient_fidelity(
    policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns, count: int, group: Group
) -> Fidelity:
    """Compare the gradients of all sequences of a group's batch at once; nothing is changed.

    Args:
        policy: the weights at which both are taken.
        s: of the mode in question.
        batch: with the carries that the mode needs.
        returns: advantages and value targets.
        count: valid steps of the group's batch.
        group: of which the batch is this rank's part.
    """
    names = [name for name, _ in policy.named_parameters()]
    parameters = list(policy.parameters())
    rows = torch.arange(batch.sequences)
    s = replace(s, gradient_accumulation=s.gradient_accumulation * s.num_minibatches)  # no more memory than an update

    def gradients(s: LearnerSettings, batch: SequenceBatch) -> dict[str, Tensor | None]:
        own: Sequence[Tensor | None] = [None] * len(parameters)
        if len(rows):
            own = shard_gradients(policy, s, batch, returns, rows, max(1, count)).gradients
        return dict(zip(names, group.sum_gradients(own, parameters), strict=True))

    cut, full = gradients(s, batch), gradients(s.full(), replace(batch, traces=None))
    return Fidelity(*_compared(cut, full, ""), *_compared(cut, full, _CORE))


def gradient_reach(policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns) -> Tensor:
    """Mean norm of the gradient of a step's loss in the carry some steps earlier, by distance: [T], NaN where none.

    It is a mean over all sequences and over some steps of each, spread evenly up to the last. The carry at distance 0
    is the one that enters the step; a reset in between ends the way.
    """
    plan = s.full().plan(batch.length)._replace(cut_every=s.plan(batch.length).cut_every)
    rows = torch.arange(batch.sequences)
    piece = Piece(rows, range(1))
    steps, carry = steps_of(policy, plan, batch, returns, piece)
    T, B = steps.mask.shape
    n = units(batch, piece)
    step_T1 = torch.arange(T, device=steps.mask.device).unsqueeze(1)
    opened_TB = torch.where(steps.resets, step_T1, -1).cummax(0).values
    sums, counts = torch.zeros(2, T, device=steps.mask.device)
    carry = {name: value.detach().requires_grad_() for name, value in carry.items()}
    entered, losses = [], []
    for t in range(T):
        entered.append(carry)
        loss = loss_of(policy, s, steps.between(slice(t, t + 1)), carry, n, None)
        losses.append(loss.total)
        carry = loss.carry
    for target in sorted({T - 1 - T * i // _TARGETS for i in range(_TARGETS)}):
        leaves = [value for part in entered[: target + 1] for value in part.values() if value.requires_grad]
        if not leaves:
            continue
        found = iter(torch.autograd.grad(losses[target], leaves, retain_graph=True, allow_unused=True))
        for t in range(target + 1):
            squares_B = torch.zeros(B, device=steps.mask.device)
            for value in entered[t].values():
                if value.requires_grad and (gradient := next(found)) is not None:
                    squares_B += gradient.flatten(1).square().sum(1)
            counted_B = steps.mask[target] & (t > opened_TB[target])
            sums[target - t] += squares_B[counted_B].sqrt().sum()
            counts[target - t] += counted_B.sum()
    return sums / counts


def _compared(cut: dict[str, Tensor | None], full: dict[str, Tensor | None], prefix: str) -> tuple[float, float]:
    product, squares = 0.0, [0.0, 0.0]
    for name in cut:
        if name.startswith(prefix):
            g, f = cut[name], full[name]
            product += float((g * f).sum()) if g is not None and f is not None else 0.0
            squares = [
                total + (0.0 if x is None else float(x.square().sum()))
                for total, x in zip(squares, (g, f), strict=True)
            ]
    g_norm, f_norm = squares[0] ** 0.5, squares[1] ** 0.5
    nan = float("nan")
    return (product / (g_norm * f_norm) if g_norm and f_norm else nan), (g_norm / f_norm if f_norm else nan)
