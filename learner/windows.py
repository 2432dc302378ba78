"""The window engine: sequences in, windows of K steps out, each with the carry it starts from.

Every mode of backpropagation through time is this one cut with another K (`LearnerSettings.plan`): 1 in cached mode,
the window in truncated mode, the whole sequence in full mode. What is worked on at once, a piece, is bounded, so that
many short windows, each with a carry of its own, need no more memory than whole sequences do.

Legend: N sequences, T steps, C = ceil(T / K) windows a sequence, W windows of a piece, K window steps.
Window c of a sequence holds steps c * K ... c * K + K - 1; what lies beyond T is padding, masked.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from controllers import Carry, Observation, Policy
from learner.batch import SequenceBatch
from learner.settings import WindowPlan

_SHARE = 0.5  # of the memory that whole sequences take; the rest is for what does not shrink with the piece
_CARRY_COST = 1.0  # how many steps' activations a carry of a controller's output size costs


class Piece(NamedTuple):
    """Windows that are worked on at once: these, of each of these sequences."""

    rows: Tensor  # [N] of the batch
    windows: range  # without gaps


class Windows(NamedTuple):
    """What `Policy.scan` takes of a piece, and which steps count."""

    observations: Observation  # part -> [K, W, ...]
    resets: Tensor  # [K, W] bool
    carry: Carry  # name -> [W, ...]
    mask: Tensor  # [K, W] bool


def pieces(policy: Policy, plan: WindowPlan, rows: Tensor, length: int) -> list[list[Piece]]:
    """All windows of the sequences `rows` [n]; what makes up the same sequences stands together."""
    C = -(-length // plan.window)
    at_once = _windows_at_once(policy, plan, len(rows), length)
    groups = rows.tensor_split(-(-len(rows) // max(1, at_once // C)))
    parts = -(-C // at_once)
    bounds = [C * part // parts for part in range(parts + 1)]
    return [[Piece(group, range(start, stop)) for start, stop in pairwise(bounds)] for group in groups]


def _windows_at_once(policy: Policy, plan: WindowPlan, sequences: int, length: int) -> int:
    if plan.window >= length:
        return sequences
    controller = policy.controller
    carry = sum(value.numel() for value in controller.initial().values()) / controller.output_size
    steps = plan.window + plan.burn_in + _CARRY_COST * carry
    return max(1, int(_SHARE * sequences * length / steps))


def cut(x_NT: Tensor, window: int) -> Tensor:
    """[N, T, ...] to [K, W, ...], window w = n * C + c; steps beyond T are zero."""
    N, T = x_NT.shape[:2]
    C = -(-T // window)
    if C * window > T:
        padding = x_NT.new_zeros(N, C * window - T, *x_NT.shape[2:])
        x_NT = torch.cat([x_NT, padding], dim=1)
    return x_NT.reshape(N * C, window, *x_NT.shape[2:]).transpose(0, 1)


def taken(x_NT: Tensor, piece: Piece, window: int) -> Tensor:
    """A piece's share of a whole batch's steps [N, T, ...], as [K, W, ...]."""
    steps = slice(piece.windows.start * window, piece.windows.stop * window)
    return cut(x_NT[:, steps][piece.rows], window)


def windows_of(policy: Policy, plan: WindowPlan, batch: SequenceBatch, piece: Piece) -> Windows:
    """A piece's windows, ready to be scanned; what it takes of the batch is copied, nothing else."""
    K, T = plan.window, batch.length
    return Windows(
        {name: taken(x[:, :T], piece, K) for name, x in batch.observations.items()},
        taken(batch.resets[:, :T], piece, K),
        window_carries(policy, plan, batch, piece),
        taken(batch.valid, piece, K),
    )


def stored_carries(batch: SequenceBatch, rows: Tensor, steps: Tensor, stride: int) -> Carry:
    """The carries stored before some steps [S], multiples of `stride`, of some sequences [n]: name -> [n, S, ...].

    Raises:
        ValueError: no carry was stored at some of those steps; it would be wrong to start there from zeros.
    """
    if stride % batch.carry_stride and stride < batch.length:
        raise ValueError(
            f"carries are stored every {batch.carry_stride} steps but windows start every {stride}; "
            f"set rollout.carry_stride to a divisor of {stride}"
        )
    at = rows[:, None], steps // batch.carry_stride
    return {name: carry[at] for name, carry in batch.carries.items()}


def window_carries(policy: Policy, plan: WindowPlan, batch: SequenceBatch, piece: Piece) -> Carry:
    """The carry that enters each window of a piece, name -> [W, ...], burnt in where the plan asks for it.

    A sequence's first window starts from its stored carry: nothing before it travelled along.
    """
    rows, windows = piece
    starts = torch.arange(windows.start, windows.stop, device=rows.device) * plan.window
    burn_in = plan.burn_in
    unburnt = len(windows) if not burn_in else int(windows.start == 0)
    carries = [stored_carries(batch, rows, starts[:unburnt], plan.window)] if unburnt else []
    if unburnt < len(windows):
        begin = starts[unburnt:] - burn_in
        steps = begin[:, None] + torch.arange(burn_in, device=rows.device)  # [windows, burn_in]

        def replayed(x_NT: Tensor) -> Tensor:
            return x_NT[rows[:, None, None], steps].flatten(0, 1).transpose(0, 1)  # [burn_in, windows of all, ...]

        observations = {name: replayed(x) for name, x in batch.observations.items()}
        stored = stored_carries(batch, rows, begin, plan.carry_stride)
        with torch.no_grad():
            entering = {name: c.flatten(0, 1) for name, c in stored.items()}
            burnt = policy.scan(observations, replayed(batch.resets), entering).carry
        carries.append({name: c.unflatten(0, (len(rows), len(begin))) for name, c in burnt.items()})
    if len(carries) == 1:
        return {name: c.flatten(0, 1) for name, c in carries[0].items()}
    return {name: torch.cat([part[name] for part in carries], 1).flatten(0, 1) for name in carries[0]}
