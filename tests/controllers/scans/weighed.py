"""Everything that two forms of a scan must agree in."""

import torch
from torch import Tensor


def with_gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs, and all gradients of a loss that weighs each number of them differently."""
    loss = sum((value * torch.arange(value.numel()).sin().view_as(value)).sum() for value in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs, materialize_grads=True)]  # type: ignore[arg-type]
