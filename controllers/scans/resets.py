"""Resets and gradient cuts in a scan that loops over time.

They are rare, so that rows are replaced one by one and nothing is masked.

Axis letters: T steps, B environments, N rows, H hidden units, R resets of all steps in order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def gradient_stops(reset_TB: Tensor, cut_TB: Tensor | None) -> Tensor:
    """True where no gradient goes back to the state before the step: at a reset, and at a cut."""
    return reset_TB if cut_TB is None else reset_TB | cut_TB


def scan_with_stops(
    function: Any, run: Callable[..., tuple[Tensor, Tensor]], x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor,
    initial_H: Tensor, p: Sequence[Tensor], cut_TB: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs [T, B, H], which are the only state, and the last of them [B, H].

    Args:
        function: takes the flags where gradients stop after those of resets, and the parameters one by one; under
            autograd.
        run: gives states [T + 1, B, H], the incoming one first, and what it is told to keep; without autograd.
        x_TBD, reset_TB, h_BH, initial_H, p, cut_TB: of the scan.
    """
    if torch.is_grad_enabled():
        y_TBH, last_BH = function.apply(x_TBD, reset_TB, gradient_stops(reset_TB, cut_TB), h_BH, initial_H, *p)
        return y_TBH, last_BH
    h_SBH, _ = run(x_TBD, reset_TB, h_BH, initial_H, p, keep=False)
    return h_SBH[1:], h_SBH[-1].clone()


def cut_carry(cut_B: Tensor, carry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`carry` with no gradient back from the lanes where `cut_B` is true; the values are the same."""
    return {
        name: torch.where(cut_B.view(-1, *(1,) * (value.dim() - 1)), value.detach(), value)
        for name, value in carry.items()
    }


def lanes_to_reset(reset_TB: Tensor) -> tuple[Tensor, ...]:
    """For each of the T steps, the indices of the environments that reset before it."""
    return reset_TB.nonzero()[:, 1].split(reset_TB.sum(1).tolist())


def of_steps(rows_RH: Tensor, lanes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Split [R, H], one row a reset, into the rows of each step."""
    return rows_RH.split([len(of_step) for of_step in lanes])


def of_step_before(y_TBH: Tensor, reset_TB: Tensor) -> Tensor:
    """For each reset the row of the same environment one step earlier, [R, H]; zeros for those at the first step."""
    return torch.cat([torch.zeros_like(y_TBH[0, reset_TB[0]]), y_TBH[:-1][reset_TB[1:]]])


def with_rows(x_NH: Tensor, rows: Tensor, initial_H: Tensor) -> Tensor:
    """[N, H] with `rows` replaced by `initial_H`."""
    return x_NH.index_copy(0, rows, initial_H.expand(len(rows), -1)) if len(rows) else x_NH
