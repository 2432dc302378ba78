"""Trials of a controller for the checks: random parameters, inputs, resets and carries, and a loss of every output."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from mneme.controllers.contract.finding import Build
from mneme.controllers.controller import Carry, Controller

INPUT, LANES = 5, 4
LENGTHS = (1, 2, 7, 33)  # alone, the shortest recurrence, and lengths that no block size divides

_MOST_WEIGHT = 20.0  # norm of the loss's weights; beyond it, gradients would only grow with the number of outputs

Run = Callable[[Tensor, Tensor, Carry], tuple[Tensor, Carry]]
"""Whatever has the arguments and the result of `Controller.scan`."""


class Trial(NamedTuple):
    """Arguments of a scan; all but the flags require gradients."""

    x: Tensor  # [T, B, D]
    reset: Tensor  # bool [T, B]
    carry: Carry  # not the initial one


def subject(build: Build, dtype: torch.dtype = torch.float64) -> Controller:
    """The controller with every parameter moved off its initial value, so that no bias and no initial carry is zero.

    The moves of wide layers are smaller, so that their dynamics stay tame enough to be compared.
    """
    generator = Generator().manual_seed(3)
    controller = build(INPUT, generator)
    with torch.no_grad():
        for parameter in controller.parameters():
            scale = min(0.3, 0.75 / parameter.shape[-1] ** 0.5) if parameter.dim() > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return controller.to(dtype)


def draw(controller: Controller, steps: int, seed: int = 0, resets: float = 0.3, lanes: int = LANES) -> Trial:
    """Inputs and carries of the controller's own type, and each step of each lane a reset with that probability."""
    generator = Generator().manual_seed(seed)
    start = {name: value.detach() for name, value in controller.initial_carry(lanes).items()}
    dtype = dtype_of(controller)
    x = torch.randn(steps, lanes, controller.input_size, generator=generator).to(dtype)
    reset = torch.rand(steps, lanes, generator=generator) < resets
    carry = {k: (v + torch.randn(v.shape, generator=generator).to(dtype)).requires_grad_() for k, v in start.items()}
    return Trial(x.requires_grad_(), reset, carry)


def dtype_of(controller: Controller) -> torch.dtype:
    """The type that the controller takes, or float64 if it takes any."""
    return controller.dtype or torch.float64


def loss_of(y: Tensor, carry: Mapping[str, Tensor]) -> Tensor:
    """A scalar that weighs every output and the final carry differently."""
    total = y.new_zeros(())
    for value in (y, *carry.values()):
        weight = torch.arange(1, value.numel() + 1, dtype=value.dtype).sin()
        weight *= (_MOST_WEIGHT / weight.norm()).clamp(max=1)
        total = total + (value * weight.view_as(value)).sum()
    return total


def results(y: Tensor, last: Carry) -> dict[str, Tensor]:
    """The results of a scan by name: the output, and each part of the last carry."""
    return {"output": y, **{f"carry {name} after it": value for name, value in last.items()}}


def differentiated(controller: Controller, trial: Trial) -> dict[str, Tensor]:
    """Everything that gradients must reach, by name."""
    carry = {f"carry {name}": value for name, value in trial.carry.items()}
    return {"input": trial.x, **carry, **dict(controller.named_parameters())}


def gradients(controller: Controller, trial: Trial, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of the loss in everything that is `differentiated`, by name; the graph is kept."""
    inputs = differentiated(controller, trial)
    found = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(map("gradient of {}".format, inputs), found, strict=True))


def outcome(run: Run, controller: Controller, trial: Trial) -> dict[str, Tensor]:
    """Outputs, last carry and all gradients of a scan, by name."""
    y, last = run(*trial)
    return results(y, last) | gradients(controller, trial, loss_of(y, last))
