"""The objective in torch: heads, ratio, clip, value, entropy.

Legend: K steps, W windows of B sequences; a window is a whole sequence unless carries are stored in between.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Observation, Policy
from mneme.learner.losses import clipped_policy_loss, masked_sum, two_hot_loss, value_loss
from mneme.learner.settings import LearnerSettings

Number = Tensor | float
"""A tensor [] on the learner's device, or a number where that is the host."""
RATIO, RATIO_SQUARED = "ratio", "ratio_squared"
"""Among the sums of a loss, what the effective sample size is made of."""
OBJECTIVE_SUMS = ("policy_loss", "value_loss", "entropy", "kl_minibatches", "clip_fraction", RATIO, RATIO_SQUARED)


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


class Objective(NamedTuple):
    """PPO's loss of some steps."""

    total: Tensor  # the sum over the steps times the weight, to be differentiated
    sums: dict[str, Number]  # of OBJECTIVE_SUMS over the steps
    ratio_error: Number  # max |ratio - 1|


def plain_objective(policy: Policy, s: LearnerSettings, steps: Steps, y_KWH: Tensor, weight: float = 1.0) -> Objective:
    """The loss of the steps in which the controller gave `y_KWH`, times a weight; see docs/learner.md."""
    parameters, values = policy.heads(y_KWH, steps.observations)
    log_probs = policy.action_distribution.log_prob(parameters, steps.actions)
    surrogate = clipped_policy_loss(log_probs, steps.old_log_probs, steps.advantages, s.clip_range, s.dual_clip)
    of_values = (
        two_hot_loss(values, steps.targets)
        if s.value_loss == "two_hot"
        else value_loss(values.squeeze(-1), steps.old_values, steps.targets, s.clip_range_vf, s.value_loss)
    )
    terms = (
        surrogate.loss, of_values, policy.action_distribution.entropy(parameters),
        surrogate.kl, surrogate.clipped, surrogate.ratio, surrogate.ratio.square(),
    )  # fmt: skip
    policy_loss, value, entropy, *rest = (masked_sum(term, steps.mask) for term in terms)
    with torch.no_grad():
        difference = torch.where(steps.mask, (log_probs - steps.old_log_probs).exp() - 1, 0.0)
    found = (policy_loss.detach(), value.detach(), entropy.detach(), *rest)
    total = weight * (policy_loss + s.vf_coef * value - s.ent_coef * entropy)
    return Objective(total, dict(zip(OBJECTIVE_SUMS, found, strict=True)), difference.abs().max())
