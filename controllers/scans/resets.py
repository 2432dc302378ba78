"""Resets inside a scan that loops over time: few lanes at a time, so rows are moved and nothing is masked.

Axis letters: T time, B lanes, N rows, H hidden, R resets of all steps in order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def lanes_to_reset(reset_TB: Tensor) -> tuple[Tensor, ...]:
    """For each of the T steps the numbers of the lanes that start afresh before it, often none."""
    return reset_TB.nonzero()[:, 1].split(reset_TB.sum(1).tolist())


def of_steps(rows_RH: Tensor, lanes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """[R, H], a row for each reset, cut into the rows of each step."""
    return rows_RH.split([len(of_step) for of_step in lanes])


def of_step_before(y_TBH: Tensor, reset_TB: Tensor) -> Tensor:
    """[R, H], for each reset the lane's row of the step before, zero where that lies before the first."""
    return torch.cat([torch.zeros_like(y_TBH[0, reset_TB[0]]), y_TBH[:-1][reset_TB[1:]]])


def with_rows(x_NH: Tensor, rows: Tensor, initial_H: Tensor) -> Tensor:
    """[N, H] with `initial_H` in the place of `rows`, whatever they were: NaN leaves no trace."""
    return x_NH.index_copy(0, rows, initial_H.expand(len(rows), -1)) if len(rows) else x_NH


def all_finite(*values: Tensor) -> bool:
    """Whether products with 0 can have hidden what lies before a reset, by the numbers that enter or leave a scan.

    They do not hide what is not finite: then only the loop over steps forgets it.
    """
    return bool(torch.stack([value.sum() for value in values]).sum().isfinite())
