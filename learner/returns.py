"""Advantages and value targets over whole sequences, before anything is cut into windows.

Both estimators are the same backward recursion, a_t = delta_t + k_t a_{t+1}, cut where an episode ends. An episode that
ends by truncation bootstraps from the value of its true final observation, never from the next episode's first. A step
that is not valid has advantage 0, so the step before it bootstraps from the value of what it observed.

Legend: B sequences, T steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mneme.learner.losses import normalized


class Returns(NamedTuple):
    """Advantages, value targets and step weights for the losses."""

    advantages: Tensor  # [B, T], without the weights: what is normalised
    targets: Tensor  # [B, T] of the value function
    weights: Tensor  # [B, T] by which a step's policy loss counts: clipped importance weights, or 1


def next_values(values_BT1: Tensor, final_values_BT: Tensor, terminated_BT: Tensor, truncated_BT: Tensor) -> Tensor:
    """The value that follows each step, [B, T]: 0 after termination, the true final observation's after truncation."""
    following = torch.where(truncated_BT, final_values_BT, values_BT1[:, 1:])
    return torch.where(terminated_BT, torch.zeros_like(following), following)


def gae(
    rewards_BT: Tensor,
    values_BT1: Tensor,
    final_values_BT: Tensor,
    terminated_BT: Tensor,
    truncated_BT: Tensor,
    valid_BT: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Returns:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    Args:
        values_BT1: values of the T observations and of the one after them, [B, T + 1].
        final_values_BT: values of the true final observations where an episode was truncated, [B, T].
    """
    after_BT = next_values(values_BT1, final_values_BT, terminated_BT, truncated_BT)
    delta_BT = torch.where(valid_BT, rewards_BT + gamma * after_BT - values_BT1[:, :-1], 0.0)
    going_on_BT = (valid_BT & ~(terminated_BT | truncated_BT)).to(delta_BT.dtype)
    advantages = _backward_sum(delta_BT, gamma * lam * going_on_BT)
    return Returns(advantages, advantages + values_BT1[:, :-1], torch.ones_like(advantages))


def vtrace(
    log_ratios_BT: Tensor,
    rewards_BT: Tensor,
    values_BT1: Tensor,
    final_values_BT: Tensor,
    terminated_BT: Tensor,
    truncated_BT: Tensor,
    valid_BT: Tensor,
    *,
    gamma: float,
    lam: float,
    rho_clip: float,
    c_clip: float,
) -> Returns:
    """V-trace targets and advantages (Espeholt et al. 2018, eq. 1 and remark 2), for fragments of older weights.

    At lam = 1 these are the paper's: the targets v_t, the advantages A_t = r_t + gamma v_{t+1} - V_t, and the weights
    rho_t of the policy loss, clipped. At any lam, equal policies give exactly GAE's advantages, the lambda-return, and
    weights of 1. Weights of later steps are inside A_t, by way of v_{t+1}; a step's own is kept apart, as A_t is
    normalised before it is weighted: a constant taken from rho_t A_t would not be a baseline, but an advantage for
    whatever the older policy did too often.

    Args:
        log_ratios_BT: log pi(a|x) - log mu(a|x), current policy over behaviour policy.
    """
    rho_BT = log_ratios_BT.exp()
    weights_BT = rho_BT.clamp(max=rho_clip)
    after_BT = next_values(values_BT1, final_values_BT, terminated_BT, truncated_BT)
    delta_BT = torch.where(valid_BT, rewards_BT + gamma * after_BT - values_BT1[:, :-1], 0.0)
    decay_BT = gamma * lam * (valid_BT & ~(terminated_BT | truncated_BT)).to(delta_BT.dtype)
    excess_BT = _backward_sum(weights_BT * delta_BT, decay_BT * rho_BT.clamp(max=c_clip))
    following_BT = torch.cat([excess_BT[:, 1:], torch.zeros_like(excess_BT[:, :1])], dim=1)
    return Returns(delta_BT + decay_BT * following_BT, excess_BT + values_BT1[:, :-1], weights_BT)


def normalized_over(returns: Returns, valid_BT: Tensor, rows: Tensor) -> Returns:
    """The returns with the advantages of the sequences `rows` [n] normalised over their valid steps, then weighted."""
    chosen, valid = returns.advantages[rows], valid_BT[rows]
    advantages_BT = returns.advantages.clone()
    advantages_BT[rows] = torch.where(valid, returns.weights[rows] * normalized(chosen, valid), 0.0)
    return returns._replace(advantages=advantages_BT)


def _backward_sum(delta_BT: Tensor, decay_BT: Tensor) -> Tensor:
    """a_t = delta_t + decay_t a_{t+1} with a_T = 0, [B, T]."""
    delta_TB, decay_TB = delta_BT.t().contiguous(), decay_BT.t().contiguous()
    total_TB = torch.empty_like(delta_TB)
    running_B = torch.zeros_like(delta_TB[0])
    for t in range(len(delta_TB) - 1, -1, -1):
        running_B = torch.addcmul(delta_TB[t], decay_TB[t], running_B, out=total_TB[t])
    return total_TB.t()
