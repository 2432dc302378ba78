"""What the base class says about arguments that do not fit."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Carry, ControllerSettings, build_controller

Arguments = tuple[Tensor, Tensor, Carry]


def without_h(x: Tensor, reset: Tensor, carry: Carry) -> tuple[Any, ...]:
    return x, reset, {"c": carry["c"]}


@pytest.mark.parametrize(
    "change,sentence",
    [
        (lambda x, r, c: (x[..., :2], r, c), r"input has shape \[3, 4, 2\]; it must be \[T, B, 5\]"),
        (lambda x, r, c: (x[:0], r[:0], c), "input has 0 time steps; a scan needs at least 1"),
        (lambda x, r, c: (x[:, :0], r[:, :0], c), "input has 0 lanes; a scan needs at least 1"),
        (lambda x, r, c: (x.half(), r, c), r"input is torch.float16 of shape .*; it must be torch.float32"),
        (lambda x, r, c: (x, r, None), "carry is None; pass what initial_carry or the previous scan returned"),
        (lambda x, r, c: (x, r[:2], c), r"flags are torch.bool of shape \[2, 4\]; .* torch.bool of shape \[3, 4\]"),
        (lambda x, r, c: (x, r.float(), c), "reset flags are torch.float32.*must be torch.bool"),
        (lambda x, r, c: (x, r.to("meta"), c), "flags are on meta and the input on cpu; move them to one device"),
        (without_h, r"carry holds \['c'\]; this controller needs exactly \['c', 'h'\]"),
        (lambda x, r, c: (x, r, {**c, "h": c["h"][:3]}), r"carry 'h' is torch.float32 of shape \[3, 6\].* \[4, 6\]"),
        (lambda x, r, c: (x, r, {**c, "c": c["c"].double()}), "carry 'c' is torch.float64.*must be torch.float32"),
        (lambda x, r, c: (x, r, {**c, "h": c["h"].to("meta")}), "carry 'h' is on meta and the input on cpu"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(change: Any, sentence: str) -> None:
    controller = build_controller(ControllerSettings(kind="lstm", hidden_size=6), 5, 10, Generator().manual_seed(0))
    x, reset = torch.randn(3, 4, 5), torch.zeros(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=sentence):
        controller.scan(*change(x, reset, controller.initial_carry(4)))


def test_a_step_checks_its_arguments_too() -> None:
    controller = build_controller(ControllerSettings(kind="gru", hidden_size=6), 5, 10, Generator().manual_seed(0))
    with torch.no_grad(), pytest.raises(ValueError, match="carry holds"):
        controller.step(torch.zeros(2, 5), torch.zeros(2, dtype=torch.bool), {})
