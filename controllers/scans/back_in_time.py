"""The way back in PyTorch through a recurrence whose output is its only state: gru and nbrc.

The gradient of each sum before its nonlinearity is dL/dh' times a factor that does not depend on dL/dh'. These factors
are computed for a block of steps at once, so that two products and one matrix product are left for each step.

Axis letters: T steps (K of one block, S = T + 1 states), B environments, H hidden units, G sums of all gates.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.resets import lanes_to_reset, of_step_before, of_steps
from mneme.controllers.scans.weight_gradients import WeightGradients

Derivatives = Callable[[int, int, Tensor], Tensor]
"""Fills [K, B, G] with the derivatives of h' in the sums of the steps from one to another, and returns that in h past
the sums, [K, B, H]."""


def back_in_time(
    derivatives: Derivatives, weights: WeightGradients, of_x: slice, of_h: slice, w_hh: Tensor, h_SBH: Tensor,
    reset_TB: Tensor, stop_TB: Tensor, dy_TBH: Tensor, dlast_BH: Tensor, initial_learns: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of the states before the first step, [B, H], and of the initial state, [H], if it learns.

    Args:
        derivatives: of the steps.
        weights: is given the gradients of each block's sums.
        of_x: the sums that inputs contribute to, among the G.
        of_h: those that states contribute to.
        w_hh: the states' weights, [of_h, H].
        h_SBH: all states, the incoming one first.
        reset_TB: where episodes begin.
        stop_TB: where no gradient goes back to the state before the step.
        dy_TBH: gradients of the outputs.
        dlast_BH: gradients of the last state besides.
        initial_learns: whether the initial state has a gradient.
    """
    (T, B), H = reset_TB.shape, h_SBH.shape[2]
    dinitial_H = h_SBH.new_zeros(H) if initial_learns else None
    resets, stops = lanes_to_reset(reset_TB), lanes_to_reset(stop_TB)
    spans = blocks(T, B)
    # dL/dy of the step before, to which each turn of the loop below leads
    dy_before = [dy_TBH.new_zeros(()), *dy_TBH[:-1].unbind()]
    dy_stop = of_steps(of_step_before(dy_TBH, stop_TB), stops)
    sums = max(of_x.stop, of_h.stop) // H
    derivatives_KBG = w_hh.new_empty(spans[0][1], B, sums * H)
    dh = dlast_BH + dy_TBH[-1]
    for start, stop in reversed(spans):
        d_KBG = derivatives_KBG[: stop - start]
        past_KBH = derivatives(start, stop, d_KBG)
        rows = zip(
            range(start, stop),
            d_KBG.view(-1, B, sums, H).unbind(),
            d_KBG[..., of_h].unbind(),
            past_KBH.unbind(),
            strict=True,
        )
        for t, d, d_rec, past in reversed(list(rows)):
            d.mul_(dh.unsqueeze(1))
            if dinitial_H is not None and len(lanes := resets[t]):
                dinitial_H += (dh[lanes] * past[lanes]).sum(0)  # its part through the gates is added for a block below
            if len(stops[t]) == B:
                dh = dy_stop[t]
                continue
            dh = torch.addcmul(dy_before[t], dh, past).addmm_(d_rec, w_hh)
            if len(stops[t]):
                dh.index_copy_(0, stops[t], dy_stop[t])
        if dinitial_H is not None:
            dinitial_H += d_KBG[reset_TB[start:stop]][:, of_h].sum(0) @ w_hh
        weights.add(start, stop, h_SBH[start:stop], d_KBG[..., of_x], d_KBG[..., of_h])
    return dh, dinitial_H
