"""PPO's losses as pure functions, and the sums from which minibatches, shards and reports are made.

Every mean is sum(x * mask) / count with one count for the whole minibatch, so that padding changes nothing and a
minibatch split over shards adds up to the same gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """Terms of one step each; all of one shape."""

    loss: Tensor  # to be minimised
    kl: Tensor  # non-negative estimate of KL(old || new) (Schulman 2020, "k3")
    clipped: Tensor  # 1.0 where the ratio lies outside the clip range


def clipped_policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), negated, elementwise."""
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    with torch.no_grad():
        return PolicyLoss(loss, ratio - 1 - log_ratio, ((ratio - 1).abs() > clip).to(ratio.dtype))


def value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, elementwise; with `clip`, the larger of it and that of the clipped value."""
    error = (values - targets).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - targets).square())
    return 0.5 * error


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the true steps. `where`, not a product: a padded step may hold anything, NaN included."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def normalized(x: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """x shifted and scaled to mean 0 and standard deviation 1 over its true steps."""
    chosen = x[mask]
    return (x - chosen.mean()) / (chosen.std(unbiased=False) + epsilon)
