"""The cost of a controller: memory, and speed beside a `torch.nn.GRU` with as many parameters.

Axis letters: T time, B environments, D input features, H hidden.
"""

from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from mneme.controllers.contract.finding import Build
from mneme.controllers.controller import Controller

STEPS, LANES = 128, 64
RESETS = 0.02  # share of steps
_ROUNDS, _SECONDS = 5, 2.0  # at least; the best counts, as whatever else the machine does only adds time
_SINGLE_STEPS = 200


class Figures(NamedTuple):
    """Speeds are steps of all lanes together, per second."""

    parameters: int
    carry_bytes: int  # of one lane, in float32
    scan_speed: float  # forward and backward, T = 128, B = 64, float32
    scan_ratio: float  # that, over the speed of a `torch.nn.GRU` with as many parameters
    step_speed: float  # one step at a time, without gradient, B = 64
    step_ratio: float
    reset_cost: float  # share of the scan's time that resets at 2 % of the steps add
    gru_hidden: int  # width of that GRU
    gru_parameters: int


def measure(build: Build, input_size: int) -> Figures:
    """Time the controller and the GRU in turn, so that both meet the same moods of the machine."""
    controller = build(input_size, Generator().manual_seed(0))
    parameters = sum(p.numel() for p in controller.parameters())
    gru = _equal_gru(input_size, parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(STEPS, LANES, input_size, requires_grad=True)
        never, some = torch.zeros(STEPS, LANES, dtype=torch.bool), torch.rand(STEPS, LANES) < RESETS
    scan, with_resets, gru_scan = best_seconds(
        _learning(lambda: controller.scan(x, never, controller.initial_carry(LANES))[0], [x, *controller.parameters()]),
        _learning(lambda: controller.scan(x, some, controller.initial_carry(LANES))[0], [x, *controller.parameters()]),
        _learning(lambda: gru(x)[0], [x, *gru.parameters()]),
    )
    step, gru_step = best_seconds(_acting(controller, x[0], never[0]), _acting_gru(gru, x[:1]))
    return Figures(
        parameters=parameters,
        carry_bytes=sum(value.numel() * value.element_size() for value in controller.initial().values()),
        scan_speed=STEPS * LANES / scan,
        scan_ratio=gru_scan / scan,
        step_speed=_SINGLE_STEPS * LANES / step,
        step_ratio=gru_step / step,
        reset_cost=with_resets / scan - 1,
        gru_hidden=gru.hidden_size,
        gru_parameters=sum(p.numel() for p in gru.parameters()),
    )


def _equal_gru(input_size: int, parameters: int) -> nn.GRU:
    """One layer, 3 H (D + H + 2) parameters: the narrowest with as many."""
    hidden = next(h for h in count(1) if 3 * h * (input_size + h + 2) >= parameters)
    with torch.random.fork_rng(devices=[]):
        return nn.GRU(input_size, hidden)


def _learning(run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(run().sum(), inputs, allow_unused=True)


def _acting(controller: Controller, x_BD: Tensor, reset_B: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def act() -> None:
        carry = controller.initial_carry(LANES)
        for _ in range(_SINGLE_STEPS):
            _, carry = controller.step(x_BD, reset_B, carry)

    return act


def _acting_gru(gru: nn.GRU, x_1BD: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def act() -> None:
        h = None
        for _ in range(_SINGLE_STEPS):
            _, h = gru(x_1BD, h)

    return act


def best_seconds(*contestants: Callable[[], object]) -> list[float]:
    """The shortest time that each takes, measured in turn; each comes after itself, as another leaves it no cache."""
    rounds: list[list[float]] = []
    first = perf_counter()
    while len(rounds) < _ROUNDS or perf_counter() - first < _SECONDS:
        seconds = []
        for run in contestants:
            run()
            started = perf_counter()
            run()
            seconds.append(perf_counter() - started)
        rounds.append(seconds)
    return [min(times) for times in zip(*rounds, strict=True)]
