"""Everything that two forms of a scan must agree in."""

import torch
from torch import Generator, Tensor

from mneme.controllers import Controller


def with_gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs, and all gradients of a loss that weighs each number of them differently."""
    loss = sum((value * torch.arange(value.numel()).sin().view_as(value)).sum() for value in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs, materialize_grads=True)]  # type: ignore[arg-type]


def scan_and_loop(built: Controller, steps: int, lanes: int) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, last carries and all gradients in float64 with resets anywhere: of the scan, and of the loop."""
    generator = Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    built = built.double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * draw(*parameter.shape)
    x = draw(steps, lanes, built.input_size).requires_grad_()
    reset = torch.rand(steps, lanes, generator=generator) < 0.3
    carry = {name: draw(*value.shape).requires_grad_() for name, value in built.initial_carry(lanes).items()}
    inputs = [x, *carry.values(), *built.parameters()]
    (y, last), (slow_y, slow_last) = built.scan(x, reset, carry), built.reference_scan(x, reset, carry)
    return with_gradients([y, *last.values()], inputs), with_gradients([slow_y, *slow_last.values()], inputs)


def gradients_of_two_layouts(built: Controller, steps: int, lanes: int) -> tuple[tuple[Tensor, ...], ...]:
    """Of all parameters, where the slopes of the same outputs come in order and in another one."""
    x, reset = torch.randn(steps, lanes, built.input_size), torch.zeros(steps, lanes, dtype=torch.bool)
    y, last = built.scan(x, reset, built.initial_carry(lanes))
    outputs = [y, *last.values()]
    slopes = [torch.randn_like(value) for value in outputs]
    turned = [slope.transpose(0, 1).contiguous().transpose(0, 1) for slope in slopes]
    parameters = list(built.parameters())
    return tuple(torch.autograd.grad(outputs, parameters, given, retain_graph=True) for given in (slopes, turned))
