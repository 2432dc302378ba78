"""Initialisation of weights. All randomness comes from the generator passed in: one seed, one set of weights."""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn


def undrawn(kind: type[nn.Module], *sizes: Any, **options: Any) -> Any:
    """A layer, without parts, whose parameters are yet to be drawn; nothing is drawn from the global generator.

    `nn.utils.skip_init` gives the same, but loads sympy for it, a third of a second in every process.
    """
    layer = kind(*sizes, **options, device="meta")
    for name, parameter in [*layer.named_parameters()]:
        setattr(layer, name, nn.Parameter(torch.empty(parameter.shape)))
    return layer


def linear(inputs: int, outputs: int, gain: float, generator: Generator) -> nn.Linear:
    """An orthogonal [outputs, inputs] layer with zero bias, drawing nothing from the global generator."""
    layer = undrawn(nn.Linear, inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain, generator)
    nn.init.zeros_(layer.bias)
    return layer


def projection(inputs: int, outputs: int, generator: Generator) -> nn.Module:
    """An orthogonal layer without bias, or nothing where the sizes agree: a blank observation stays blank.

    Below a LayerNorm this decides what linear states remember: any bias would be brought to full size, and be written
    at every blank step.
    """
    if inputs == outputs:
        return nn.Identity()
    layer = undrawn(nn.Linear, inputs, outputs, bias=False)
    nn.init.orthogonal_(layer.weight, generator=generator)
    return layer


def convolution(channels: int, filters: int, kernel: int, stride: int, padding: int, generator: Generator) -> nn.Conv2d:
    """An orthogonal [filters, channels, kernel, kernel] layer for ReLU with zero bias, drawn as in `linear`."""
    layer = undrawn(nn.Conv2d, channels, filters, kernel, stride, padding)
    nn.init.orthogonal_(layer.weight, math.sqrt(2), generator)
    nn.init.zeros_(layer.bias)
    return layer


def gate_weights(gates: int, inputs: int, hidden: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Input weights [gates * hidden, inputs], uniform in ±1/sqrt(hidden), and one orthogonal recurrent matrix
    a gate, stacked to [gates * hidden, hidden]."""
    bound = 1 / math.sqrt(hidden)
    w_ih = torch.empty(gates * hidden, inputs).uniform_(-bound, bound, generator=generator)
    w_hh = torch.empty(gates, hidden, hidden)
    for w_HH in w_hh:
        nn.init.orthogonal_(w_HH, generator=generator)
    return w_ih, w_hh.view(gates * hidden, hidden)


def chrono_bias(hidden: int, horizon: int, generator: Generator) -> Tensor:
    """Bias [hidden] of a gate that keeps: log U(1, horizon - 1).

    A gate sigmoid(b) forgets with time constant about exp(b), so the units' time constants spread evenly over
    the horizon, in steps (Tallec & Ollivier 2018, equation 16). A horizon below 2 counts as 2.
    """
    return torch.empty(hidden).uniform_(1.0, float(max(horizon, 2) - 1), generator=generator).log_()


def initial_steps(size: int, chrono: bool, generator: Generator) -> Tensor:
    """Lengths of a selective state space's steps at the start, [size], log-uniform.

    Published are 0.001 to 0.1. What is written is multiplied by them, so chrono has them long, 0.1 to 1, and leaves
    the time constants to the rates.
    """
    least, most = (1e-1, 1.0) if chrono else (1e-3, 1e-1)
    return torch.empty(size).uniform_(math.log(least), math.log(most), generator=generator).exp_()
