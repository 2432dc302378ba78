"""Resets by rows."""

import pytest
import torch
from torch import Generator

from mneme.controllers.scans.resets import lanes_to_reset, of_step_before, of_steps, with_rows


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps,lanes", [(1, 1), (7, 5), (3, 0)])
def test_the_lanes_of_each_step_are_those_with_a_flag(share: float, steps: int, lanes: int) -> None:
    reset = torch.rand(steps, lanes, generator=Generator().manual_seed(0)) < share
    expected = [[b for b in range(lanes) if reset[t, b]] for t in range(steps)]
    assert [rows.tolist() for rows in lanes_to_reset(reset)] == expected


def test_each_reset_meets_the_row_of_its_lane_a_step_before() -> None:
    reset = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    y_TBH = torch.arange(1.0, 9.0).view(4, 2, 1)
    rows = of_steps(of_step_before(y_TBH, reset), lanes_to_reset(reset))
    assert [of_step[:, 0].tolist() for of_step in rows] == [[0.0], [2.0], [], [5.0, 6.0]]


def test_rows_are_replaced_and_the_others_stay() -> None:
    x = torch.tensor([[1.0, 2.0], [7.0, 8.0], [3.0, 4.0]])
    before = x.clone()
    replaced = with_rows(x, torch.tensor([1]), torch.tensor([5.0, 6.0]))
    assert replaced.tolist() == [[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]]
    torch.testing.assert_close(x, before)


def test_gradients_go_to_the_rows_that_stay_and_to_what_replaces_the_others() -> None:
    x, initial = torch.zeros(3, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    dx, dinitial = torch.autograd.grad((with_rows(x, torch.tensor([0, 2]), initial) * weight).sum(), [x, initial])
    assert dx.tolist() == [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]
    assert dinitial.tolist() == [6.0, 8.0]
