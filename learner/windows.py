"""The window engine: sequences in, windows of K steps out, each with the carry it starts from.

Every mode of backpropagation through time is this one cut with another K (`LearnerSettings.plan`): 1 in cached mode,
the window in truncated mode, the whole sequence in full mode.

Legend: N sequences, T steps, S stored carries, C = ceil(T / K) windows a sequence, W = N * C windows, K window steps.
Window w = n * C + c holds steps c * K ... c * K + K - 1 of sequence n; what lies beyond T is padding, masked.
"""

import torch
from torch import Tensor

from controllers import Carry, Observation, Policy
from learner.settings import WindowPlan


def cut(x_NT: Tensor, window: int) -> Tensor:
    """[N, T, ...] to [K, W, ...]; steps beyond T are zero."""
    N, T = x_NT.shape[:2]
    C = -(-T // window)
    if C * window > T:
        padding = x_NT.new_zeros(N, C * window - T, *x_NT.shape[2:])
        x_NT = torch.cat([x_NT, padding], dim=1)
    return x_NT.reshape(N * C, window, *x_NT.shape[2:]).transpose(0, 1)


def stored_carries(carries_NS: Carry, stored_stride: int, length: int, stride: int) -> Carry:
    """The stored carries thinned to every `stride` steps: name -> [N, ceil(T / stride), ...].

    Raises:
        ValueError: no carry was stored at some of those steps; it would be wrong to start there from zeros.
    """
    if stride % stored_stride and stride < length:
        raise ValueError(
            f"carries are stored every {stored_stride} steps but windows start every {stride}; "
            f"set rollout.carry_stride to a divisor of {stride}"
        )
    every = max(1, stride // stored_stride)
    return {name: carry[:, ::every][:, : -(-length // stride)] for name, carry in carries_NS.items()}


def window_carries(
    policy: Policy,
    plan: WindowPlan,
    observations_NT: Observation,
    resets_NT: Tensor,
    carries_NS: Carry,
    stored_stride: int,
) -> Carry:
    """The carry that enters each window, name -> [W, ...], burnt in where the plan asks for it.

    A sequence's first window starts from its stored carry: nothing before it travelled along.
    """
    N, T = resets_NT.shape
    K, burn_in = plan.window, plan.burn_in
    starts = stored_carries(carries_NS, stored_stride, T, K)
    C = -(-T // K)
    if burn_in and C > 1:
        fine = stored_carries(carries_NS, stored_stride, T, plan.carry_stride)
        begin = torch.arange(1, C, device=resets_NT.device) * K - burn_in  # [C - 1] first burn-in steps
        steps = begin[:, None] + torch.arange(burn_in, device=begin.device)  # [C - 1, burn_in]

        def replayed(x_NT: Tensor) -> Tensor:
            return x_NT[:, steps].flatten(0, 1).transpose(0, 1)  # [burn_in, N * (C - 1), ...]

        observations = {name: replayed(part) for name, part in observations_NT.items()}
        carry = {name: c[:, begin // plan.carry_stride].flatten(0, 1) for name, c in fine.items()}
        with torch.no_grad():
            refreshed = policy.scan(observations, replayed(resets_NT), carry).carry
        starts = {
            name: torch.cat([c[:, :1], refreshed[name].unflatten(0, (N, C - 1))], dim=1) for name, c in starts.items()
        }
    return {name: c.flatten(0, 1) for name, c in starts.items()}
