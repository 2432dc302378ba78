"""Advantages and value targets over whole sequences, before anything is cut into windows.

Both estimators are the same backward recursion, a_t = delta_t + k_t a_{t+1}, cut where an episode ends. An episode that
ends by truncation bootstraps from the value of its true final observation, never from the next episode's first. A step
that is not valid has advantage 0, so the step before it bootstraps from the value of what it observed.

Legend: B sequences, T steps.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Returns(NamedTuple):
    """What the losses need of the future."""

    advantages: Tensor  # [B, T]
    targets: Tensor  # [B, T] of the value function


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
    return Returns(advantages, advantages + values_BT1[:, :-1])


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

    At lam = 1 these are the paper's: the targets v_t, and rho_t (r_t + gamma v_{t+1} - V_t) for the advantages. At any
    lam, equal policies give exactly GAE's advantages and the lambda-return.

    Args:
        log_ratios_BT: log pi(a|x) - log mu(a|x), current policy over behaviour policy.
    """
    rho_BT = log_ratios_BT.exp()
    clipped_rho_BT = rho_BT.clamp(max=rho_clip)
    after_BT = next_values(values_BT1, final_values_BT, terminated_BT, truncated_BT)
    delta_BT = torch.where(valid_BT, clipped_rho_BT * (rewards_BT + gamma * after_BT - values_BT1[:, :-1]), 0.0)
    going_on_BT = (valid_BT & ~(terminated_BT | truncated_BT)).to(delta_BT.dtype)
    excess_BT = _backward_sum(delta_BT, gamma * lam * rho_BT.clamp(max=c_clip) * going_on_BT)
    targets_BT = excess_BT + values_BT1[:, :-1]
    following_BT = torch.cat([excess_BT[:, 1:], torch.zeros_like(excess_BT[:, :1])], dim=1)
    advantages_BT = delta_BT + clipped_rho_BT * gamma * lam * going_on_BT * following_BT
    return Returns(advantages_BT, targets_BT)


def _backward_sum(delta_BT: Tensor, decay_BT: Tensor) -> Tensor:
    """a_t = delta_t + decay_t a_{t+1} with a_T = 0, [B, T]."""
    delta_TB, decay_TB = delta_BT.t().contiguous(), decay_BT.t().contiguous()
    total_TB = torch.empty_like(delta_TB)
    running_B = torch.zeros_like(delta_TB[0])
    for t in range(len(delta_TB) - 1, -1, -1):
        running_B = torch.addcmul(delta_TB[t], decay_TB[t], running_B, out=total_TB[t])
    return total_TB.t()
