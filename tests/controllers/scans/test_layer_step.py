"""Compiled steps of whole layers against the loop over their cells."""

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.scans.layer_step import LANES

STEPS = 12
KINDS = ["mingru", "lru", "mamba", "mamba2", "pseudo_mamba", "transformer"]


def drawn(kind: str, inputs: int, hidden: int, lanes: int, dtype: torch.dtype) -> tuple[Controller, Tensor, Tensor]:
    """A controller whose parameters are all off their start, inputs of which some are blank, and flags."""
    generator = Generator().manual_seed(0)
    settings = ControllerSettings(kind=kind, hidden_size=hidden, initial_carry="learned")
    controller = build_controller(settings, inputs, 20, generator).to(dtype)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    x = torch.randn(STEPS, lanes, inputs, generator=generator, dtype=dtype)
    return controller, x * (x[..., :1] > -1), torch.rand(STEPS, lanes, generator=generator) < 0.2


@pytest.mark.parametrize("dtype,close", [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("inputs,hidden,lanes", [(3, 5, 2), (33, 33, LANES + 3), (4, 48, 2 * LANES)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_steps_are_the_loop_over_the_cell(
    kind: str, inputs: int, hidden: int, lanes: int, dtype: torch.dtype, close: float
) -> None:
    controller, x, reset = drawn(kind, inputs, hidden, lanes, dtype)
    carry, found, step = controller.initial_carry(lanes), [], controller.stepper()
    for x_BD, reset_B in zip(x, reset, strict=True):
        y_BH, carry = step(x_BD, reset_B, carry)
        found.append(y_BH.clone())
    exact = controller.double()
    expected = exact.reference_scan(x.double(), reset, exact.initial_carry(lanes))
    given = torch.stack(found).double(), {name: value.double() for name, value in carry.items()}
    torch.testing.assert_close(given, expected, rtol=close, atol=close)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_step_takes_no_memory_and_strided_arguments_do_as_well(kind: str) -> None:
    controller, x, reset = drawn(kind, 3, 8, 6, torch.float32)
    step, carry = controller.stepper(), controller.initial_carry(6)
    y, after = step(x[0], reset[0], carry)
    place, kept = y.data_ptr(), y.clone()
    assert all(after[name] is value for name, value in carry.items())
    strided = {n: v.transpose(0, 1).contiguous().transpose(0, 1) for n, v in controller.initial_carry(6).items()}
    again, _ = step(x[0].t().contiguous().t(), reset[0], strided)
    assert again.data_ptr() == place and torch.equal(again, kept)
