"""The loss of some steps: the scan, PPO's objective, and what the controller adds of its own.

Legend: K steps, W windows of B sequences; a window is a whole sequence unless carries are stored in between.
"""

from typing import NamedTuple

from torch import Tensor

from mneme.controllers import Carry, Policy
from mneme.learner.auxiliary_loss import AuxiliaryLoss, SignalSums
from mneme.learner.batch import SequenceBatch
from mneme.learner.losses import masked_sum
from mneme.learner.objective import Number, Steps, objective
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings, WindowPlan
from mneme.learner.transfer import moved
from mneme.learner.windows import Piece, taken, windows_of

SIGNAL = "signal/"
"""Before the names of a controller's signals among metrics, so that none of its own can be taken for ours."""


class Loss(NamedTuple):
    """The loss of some steps."""

    total: Tensor  # the sum over the steps times the weight, to be differentiated
    sums: dict[str, Number]  # of losses and signals over the steps
    carry: Carry  # after the last step, [W, ...] a name
    ratio_error: Number  # max |ratio - 1|


def steps_of(
    policy: Policy, plan: WindowPlan, batch: SequenceBatch, returns: Returns, piece: Piece
) -> tuple[Steps, Carry]:
    """A piece's steps, and the carry before the first one of each window, with its gradient where it is traced."""
    K, T = plan.window, batch.length
    windows = windows_of(policy, plan, batch, piece)
    steps = Steps(
        windows.observations,
        windows.resets,
        windows.cuts,
        windows.mask,
        taken(batch.actions, piece, K),
        taken(batch.log_probs, piece, K),
        taken(batch.values[:, :T], piece, K),
        taken(returns.advantages, piece, K),
        taken(returns.targets, piece, K),
        taken(batch.episodes, piece, K) if batch.packed else None,
    )
    if batch.traces is None:
        return steps, windows.carry
    rows = moved(piece.rows, batch.valid.device)
    return steps, policy.traced(windows.carry, {name: trace[rows] for name, trace in batch.traces.items()})


def units(batch: SequenceBatch, piece: Piece) -> int:
    """B: the sequences that a piece's windows are of; of packed ones, the episodes of the whole batch."""
    return int(batch.episodes[-1, -1]) + 1 if batch.packed else len(piece.rows)


def loss_of(
    policy: Policy,
    s: LearnerSettings,
    steps: Steps,
    carry: Carry,
    sequences: int,
    auxiliary: AuxiliaryLoss | None,
    weight: float = 1.0,
) -> Loss:
    """PPO's loss; see docs/learner.md.

    Args:
        policy: what is trained.
        s: the learner's settings.
        steps: of windows that lie sequence by sequence, equally many of each.
        carry: before the first step.
        sequences: B, see `units`.
        auxiliary: the auxiliary loss of these sequences, of which the steps are a part; without it that of the steps
            themselves, which are then whole sequences.
        weight: by which the loss is multiplied.
    """
    y_KWH, carry, signals = policy.features(steps.observations, steps.resets, carry, steps.cuts)
    total, sums, ratio_error = objective(policy, s, steps, y_KWH, weight)
    for name, signal in signals.items():
        sums[f"{SIGNAL}{name}"] = masked_sum(signal, steps.mask).detach()
    if policy.controller.has_auxiliary_loss:
        said = SignalSums.of(signals, steps.mask, sequences, steps.episode)
        auxiliary = auxiliary or AuxiliaryLoss.at(policy.controller, said)
        sums["auxiliary_loss"] = auxiliary.total.detach()
        total = total + weight * (auxiliary.total + auxiliary.through(said))
    return Loss(total, sums, carry, ratio_error)
