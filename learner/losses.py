"""PPO's losses as pure functions, and the sums from which minibatches, shards and reports are made.

Every mean is sum(x * mask) / count with one count for the whole minibatch, so that padding changes nothing and a
minibatch split over shards adds up to the same gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import two_hot_of
from mneme.learner.settings import ScalarLoss


class PolicyLoss(NamedTuple):
    """Terms of one step each; all of one shape."""

    loss: Tensor  # to be minimised
    kl: Tensor  # non-negative estimate of KL(old || new) (Schulman 2020, "k3")
    clipped: Tensor  # 1.0 where the ratio lies outside the clip range
    ratio: Tensor  # of new to old probability


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float, dual_clip: float | None = None
) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated, elementwise.

    With `dual_clip`, above 1, the loss of a negative advantage A is at most dual_clip * |A| (Ye et al. 2020, eq. 5).
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    with torch.no_grad():
        return PolicyLoss(loss, ratio - 1 - log_ratio, ((ratio - 1).abs() > clip).to(ratio.dtype), ratio.detach())


def value_loss(
    values: Tensor, old_values: Tensor, targets: Tensor, clip: float | None, kind: ScalarLoss = "mse"
) -> Tensor:
    """Half the squared error, elementwise; with `clip`, the larger of it and that of the clipped value.

    Huber's loss (1964, delta = 1) is the same up to an error of 1, and grows in a line beyond it.
    """
    measure = _half_square if kind == "mse" else _huber
    loss = measure(values, targets)
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, measure(clipped, targets))
    return loss


def _half_square(values: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (values - targets).square()


def _huber(values: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.huber_loss(values, targets, reduction="none")


def two_hot_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy [...] of the distribution over bins, logits [..., V], with the two-hot encoding of targets [...].

    It is that of Hafner et al. (2023, arXiv:2301.04104); see `controllers/two_hot.py`.
    """
    lower, share = two_hot_of(targets, logits.shape[-1])
    log_p = logits.log_softmax(-1).gather(-1, torch.stack([lower, lower + 1], -1))
    return -((1 - share) * log_p[..., 0] + share * log_p[..., 1])


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the true steps. `where`, not a product: a padded step may hold anything, NaN included."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def normalized(x: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """x shifted and scaled to mean 0 and standard deviation 1 over its true steps."""
    chosen = x[mask]
    return (x - chosen.mean()) / (chosen.std(unbiased=False) + epsilon)
