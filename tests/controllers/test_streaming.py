"""An agent that acts for a very long time: a million steps, one after the other, are what scans of them are."""

import resource

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import CONTROLLERS, Carry, ControllerSettings, build_controller

STEPS, CHUNK, LANES, FEATURES, HIDDEN = 1_000_000, 10_000, 2, 3, 16
DRIFT = 1e-4
"""Largest difference of outputs between streaming and scanning, both in float32, at the end of any chunk."""
GROWTH = 8 * 2**20
"""Bytes that a process may grow by over the second half of the steps, of which the carry has some hundreds."""
KINDS = [kind for kind in CONTROLLERS if kind != "mlp"]


def chunk(number: int) -> tuple[Tensor, Tensor]:
    """Inputs [CHUNK, LANES, FEATURES], most of them blank, and reset flags; a lane's episode lasts 200,000 steps."""
    generator = Generator().manual_seed(number)
    x = torch.randn(CHUNK, LANES, FEATURES, generator=generator)
    x[torch.rand(CHUNK, generator=generator) < 0.99] = 0
    reset = torch.zeros(CHUNK, LANES, dtype=torch.bool)
    reset[0] = number % 20 == 0
    return x, reset


def streamed(step: object, x: Tensor, reset: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    y = x.new_zeros(LANES, HIDDEN)
    for x_BD, reset_B in zip(x, reset, strict=True):
        y, carry = step(x_BD, reset_B, carry)  # type: ignore[operator]
    return y.clone(), {name: value.clone() for name, value in carry.items()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_million_steps_are_their_scan(kind: str) -> None:
    torch.set_num_threads(1)
    settings = ControllerSettings(kind=kind, hidden_size=HIDDEN)
    controller = build_controller(settings, FEATURES, 100_000, Generator().manual_seed(0))
    step, carry, scanned = controller.stepper(), controller.initial_carry(LANES), controller.initial_carry(LANES)
    used, tiny = 0, torch.finfo(torch.float32).tiny
    for number in range(STEPS // CHUNK):
        x, reset = chunk(number)
        y, carry = streamed(step, x, reset, carry)
        y_TBH, scanned = controller.scan(x, reset, scanned)
        assert y.isfinite().all() and all(value.isfinite().all() for value in carry.values())
        torch.testing.assert_close(y, y_TBH[-1], rtol=0, atol=DRIFT, msg=lambda m, n=number: f"chunk {n}: {m}")
        if number == STEPS // CHUNK // 2:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    subnormal = {
        name: int(((value != 0) & (value.abs() < tiny)).sum())
        for name, value in carry.items() if value.is_floating_point()
    }  # fmt: skip
    assert not any(subnormal.values()), subnormal
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used < GROWTH
