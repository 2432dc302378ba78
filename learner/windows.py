"""The window engine: sequences in, windows of K steps out, each with the carry it starts from.

Every mode of backpropagation through time is where gradients are cut (`LearnerSettings.plan`): before every step in
cached mode, every so many steps in truncated mode, nowhere in full mode. With fresh carries a window is a whole
sequence, and the scan cuts gradients in it. With stored carries a window is what lies between two cuts, and starts from
its own carry. What is worked on at once, a piece, is bounded, so that many short windows, each with a carry of its own,
need no more memory than whole sequences do.

Legend: B sequences, T steps, C = ceil(T / K) windows a sequence, W windows of a piece, K window steps.
Window c of a sequence holds steps c * K ... c * K + K - 1; what lies beyond T is padding, masked.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Carry, Observation, Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.settings import WindowPlan
from mneme.learner.transfer import moved

_SHARE = 0.7  # of the memory that whole sequences take
_WINDOW_COST = 1.5  # how many steps' activations it costs the gated kernels to have one more lane
_CARRY_COST = 0.35  # how many steps' activations a carry of as many numbers as an output costs, gradients included


class Piece(NamedTuple):
    """Windows that are worked on at once: these, of each of these sequences."""

    rows: Tensor  # [B] of the batch, on the host, where stored carries lie
    windows: range  # without gaps


class Windows(NamedTuple):
    """The arguments of `Policy.scan` for a piece, and a mask of the steps that count."""

    observations: Observation  # part -> [K, W, ...]
    resets: Tensor  # [K, W] bool
    carry: Carry  # name -> [W, ...]
    cuts: Tensor | None  # [K, W] bool, where no gradient goes back
    mask: Tensor  # [K, W] bool


def pieces(policy: Policy, plan: WindowPlan, rows: Tensor, length: int) -> list[list[Piece]]:
    """All windows of the sequences `rows` [n], on the host; what makes up the same sequences stands together."""
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
    steps = plan.window + _WINDOW_COST + _CARRY_COST * carry
    return max(1, int(_SHARE * sequences * length / steps))


def cut(x_BT: Tensor, window: int) -> Tensor:
    """[B, T, ...] to [K, W, ...], window w = n * C + c; steps beyond T are zero."""
    B, T = x_BT.shape[:2]
    if window == T:
        return x_BT.transpose(0, 1)
    C = -(-T // window)
    if C * window > T:
        padding = x_BT.new_zeros(B, C * window - T, *x_BT.shape[2:])
        x_BT = torch.cat([x_BT, padding], dim=1)
    return x_BT.reshape(B * C, window, *x_BT.shape[2:]).transpose(0, 1)


def taken(x_BT: Tensor, piece: Piece, window: int) -> Tensor:
    """A piece's share of a whole batch's steps [B, T, ...], as [K, W, ...]."""
    steps = slice(piece.windows.start * window, piece.windows.stop * window)
    if x_BT.device.type == "cpu" and not x_BT.requires_grad:  # by numpy, whose small copies cost a third of torch's
        return cut(torch.from_numpy(x_BT.numpy()[piece.rows.numpy(), steps]), window)
    return cut(x_BT[:, steps][moved(piece.rows, x_BT.device)], window)


def windows_of(policy: Policy, plan: WindowPlan, batch: SequenceBatch, piece: Piece) -> Windows:
    """A piece's windows, ready to be scanned; what it takes of the batch is copied, nothing else."""
    K, T = plan.window, batch.length
    resets = taken(batch.resets[:, :T], piece, K)
    cuts = None
    if plan.cut_every < K:
        steps_KW = torch.arange(K, device=resets.device).unsqueeze(1).expand_as(resets)
        if batch.packed:  # those of each episode are where they would be if it were alone
            steps_KW = steps_KW - torch.where(resets, steps_KW, 0).cummax(0).values
        cuts = steps_KW % plan.cut_every == 0
    return Windows(
        {name: taken(x[:, :T], piece, K) for name, x in batch.observations.items()},
        resets,
        window_carries(policy, plan, batch, piece),
        cuts,
        taken(batch.valid, piece, K),
    )


def stored_carries(batch: SequenceBatch, rows: Tensor, steps: range) -> Carry:
    """The carries stored before these steps of some sequences [n]: name -> [n, len(steps), ...].

    Raises:
        ValueError: no carry was stored at some of those steps; it would be wrong to start there from zeros.
    """
    stride = batch.carry_stride
    if any(step % stride for step in (steps.start, steps.step if len(steps) > 1 else 0)):
        raise ValueError(
            f"carries are stored every {stride} steps but windows start every {steps.step}; "
            f"set rollout.carry_stride to a divisor of {steps.step}"
        )
    return batch.stored.at(rows, slice(steps.start // stride, steps[-1] // stride + 1, max(1, steps.step // stride)))


def window_carries(policy: Policy, plan: WindowPlan, batch: SequenceBatch, piece: Piece) -> Carry:
    """The carry that enters each window of a piece, name -> [W, ...], burnt in where the plan asks for it.

    A sequence's first window starts from its stored carry: nothing before it travelled along.
    """
    rows, windows = piece
    K, burn_in = plan.window, plan.burn_in
    if plan.from_zero:
        return {name: start.detach() for name, start in policy.initial_carry(len(rows) * len(windows)).items()}
    unburnt = len(windows) if not burn_in else int(windows.start == 0)
    carries = [stored_carries(batch, rows, _first_steps(windows[:unburnt], K, 0))] if unburnt else []
    if unburnt < len(windows):
        begin = _first_steps(windows[unburnt:], K, -burn_in)
        steps = torch.tensor(begin)[:, None] + torch.arange(burn_in)  # [windows, burn_in]
        places = [moved(index, batch.resets.device) for index in (rows[:, None, None], steps)]

        def replayed(x_BT: Tensor) -> Tensor:
            return x_BT[places[0], places[1]].flatten(0, 1).transpose(0, 1)  # [burn_in, windows of all, ...]

        observations = {name: replayed(x) for name, x in batch.observations.items()}
        entering = {name: c.flatten(0, 1) for name, c in stored_carries(batch, rows, begin).items()}
        with torch.no_grad():
            burnt = policy.scan(observations, replayed(batch.resets), entering).carry
        carries.append({name: c.unflatten(0, (len(rows), len(begin))) for name, c in burnt.items()})
    if len(carries) == 1:
        return {name: c.flatten(0, 1) for name, c in carries[0].items()}
    return {name: torch.cat([part[name] for part in carries], 1).flatten(0, 1) for name in carries[0]}


def _first_steps(windows: range, window: int, shift: int) -> range:
    """The first step of each of these windows, moved by `shift` steps."""
    return range(windows.start * window + shift, windows.stop * window + shift, window)
