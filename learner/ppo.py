"""PPO's loss of some steps: scan, ratio, clip, value, entropy.

Legend: K steps, W windows of B sequences; a window is a whole sequence unless carries are stored in between.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Carry, Observation, Policy
from mneme.learner.auxiliary_loss import AuxiliaryLoss, SignalSums
from mneme.learner.batch import SequenceBatch
from mneme.learner.losses import clipped_policy_loss, masked_sum, two_hot_loss, value_loss
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings, WindowPlan
from mneme.learner.windows import Piece, taken, windows_of

SIGNAL = "signal/"
"""Before the names of a controller's signals among metrics, so that none of its own can be taken for ours."""
RATIO, RATIO_SQUARED = "ratio", "ratio_squared"
"""Among the sums of a loss, what the effective sample size is made of."""


class Steps(NamedTuple):
    """Steps of some windows, with all that their loss depends on besides the policy and the carry before them."""

    observations: Observation  # part -> [K, W, ...]
    resets: Tensor  # [K, W] bool
    cuts: Tensor | None  # [K, W] bool, where no gradient goes back
    mask: Tensor  # [K, W] bool, which steps count
    actions: Tensor  # [K, W, *action]
    old_log_probs: Tensor  # [K, W]
    old_values: Tensor  # [K, W]
    advantages: Tensor  # [K, W]
    targets: Tensor  # [K, W] of the values
    episode: Tensor | None = None  # [K, W] int64, of packed sequences: which of the batch's episodes a step is of

    def between(self, span: slice) -> "Steps":
        """Those of a span of time."""
        observations = {name: x[span] for name, x in self.observations.items()}
        return Steps(observations, *(None if x is None else x[span] for x in self[1:]))  # type: ignore[arg-type]


class Loss(NamedTuple):
    """The loss of some steps, not yet divided by their number."""

    total: Tensor  # to be differentiated
    sums: dict[str, Tensor]  # of losses and signals over the steps
    carry: Carry  # after the last step, [W, ...] a name
    ratio_error: Tensor  # max |ratio - 1|


def steps_of(
    policy: Policy, plan: WindowPlan, batch: SequenceBatch, returns: Returns, piece: Piece
) -> tuple[Steps, Carry]:
    """A piece's steps, and the carry before the first one of each window."""
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
    return steps, windows.carry


def units(batch: SequenceBatch, piece: Piece) -> int:
    """B: the sequences that a piece's windows are of; of packed ones, the episodes of the whole batch."""
    return int(batch.episodes[-1, -1]) + 1 if batch.packed else len(piece.rows)


def loss_of(
    policy: Policy, s: LearnerSettings, steps: Steps, carry: Carry, sequences: int, auxiliary: AuxiliaryLoss | None
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
    """
    out = policy.scan(steps.observations, steps.resets, carry, steps.cuts)
    log_probs = policy.action_distribution.log_prob(out.parameters_TBA, steps.actions)
    surrogate = clipped_policy_loss(log_probs, steps.old_log_probs, steps.advantages, s.clip_range, s.dual_clip)
    terms = {
        "policy_loss": surrogate.loss,
        "value_loss": (
            two_hot_loss(out.values_TBV, steps.targets)
            if s.value_loss == "two_hot"
            else value_loss(out.value_TB, steps.old_values, steps.targets, s.clip_range_vf, s.value_loss)
        ),
        "entropy": policy.action_distribution.entropy(out.parameters_TBA),
        "kl_minibatches": surrogate.kl,
        "clip_fraction": surrogate.clipped,
        RATIO: surrogate.ratio,
        RATIO_SQUARED: surrogate.ratio.square(),
        **{f"{SIGNAL}{name}": signal for name, signal in out.signals.items()},
    }
    sums = {name: masked_sum(term, steps.mask) for name, term in terms.items()}
    total = sums["policy_loss"] + s.vf_coef * sums["value_loss"] - s.ent_coef * sums["entropy"]
    if policy.controller.has_auxiliary_loss:
        said = SignalSums.of(out.signals, steps.mask, sequences, steps.episode)
        auxiliary = auxiliary or AuxiliaryLoss.at(policy.controller, said)
        sums["auxiliary_loss"] = auxiliary.total
        total = total + auxiliary.total + auxiliary.through(said)
    with torch.no_grad():
        difference = torch.where(steps.mask, (log_probs - steps.old_log_probs).exp() - 1, 0.0)
    sums = {name: value.detach() for name, value in sums.items()}
    return Loss(total, sums, out.carry, difference.abs().max())
