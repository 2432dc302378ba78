"""Every scan against the loop over its cell in float64: outputs, last carries, and gradients in everything.

The error of a tensor is |error| / |value|, with Euclidean norms of the whole, and that of a scan its worst tensor's.
The reference starts from the same rounded parameters and inputs, so that what is seen is how computing rounds.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.scans import (
    MODULE,
    PRECISIONS,
    Contestant,
    arguments,
    build,
    contestants,
    other_tiles,
    products_in,
    reference,
    scanned,
    tiled,
)
from benchmarks.gpu.stages import Tell
from benchmarks.gpu.timing import OTHER_TILES, shapes
from mneme.controllers import Carry, Controller

TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bf16": 5e-2, "bfloat16": 0.2}
UNEVEN = ((33, 37, 64), (5, 130, 200))  # with borders of blocks everywhere
TINY = ((5, 3, 8),)
STEPS = 4  # over which the shapes that are timed are checked, which compiles their kernels


def items(device: torch.device, kinds: list[str], tiny: bool) -> list[str]:
    """The scans to check, in every precision, and with other tiles."""
    found = contestants(device, kinds, ["tf32", "float32", "bf16", "bfloat16"])
    found += other_tiles(device, kinds, 1 if tiny else OTHER_TILES)
    return [str(contestant) for contestant in found if contestant.backend != MODULE]


def work(item: str, device: torch.device, tiny: bool, tell: Tell) -> None:
    """Tell the worst error at each shape. What a backend does not take is told too: some kinds know no bfloat16.

    Raises:
        RuntimeError: the device does not answer any more.
    """
    contestant = Contestant.of(item)
    short = tuple(dict.fromkeys((STEPS, *shape[1:]) for shape in shapes(tiny)))
    uneven = () if "@" in contestant.backend else UNEVEN
    for shape in TINY if tiny else (*uneven, *short):
        told: dict[str, Any] = {"shape": shape, "tolerance": TOLERANCES[contestant.precision]}
        try:
            error, where = worst(contestant, shape, device)
        except (RuntimeError, ValueError, TypeError) as failure:
            tell(told | {"passed": False, "failure": f"{type(failure).__name__}: {str(failure).splitlines()[0]}"})
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # after an illegal access nothing works
            continue
        tell(told | {"passed": error < TOLERANCES[contestant.precision], "error": error, "where": where})


def worst(contestant: Contestant, shape: tuple[int, int, int], device: torch.device) -> tuple[float, str]:
    """The largest relative error, and the tensor that it belongs to; one that is not finite counts as 1e9."""
    dtype = PRECISIONS[contestant.precision]
    fast = build(contestant.kind, shape[2], contestant.backend).to(device, dtype)
    slow = reference(contestant, shape[2]).to(device, dtype).to(torch.float64)
    x, reset, carry = arguments(fast, shape, dtype, device)
    with products_in(contestant.precision), tiled(contestant):
        found = _computed(fast, contestant.precision, x, reset, carry)
    exact = {name: value.detach().double().requires_grad_() for name, value in carry.items()}
    expected = _computed(slow, "float32", x.detach().double().requires_grad_(), reset, exact)
    errors = {name: _distance(found[name], value) for name, value in expected.items()}
    where = max(errors, key=errors.__getitem__)
    return errors[where], where


def _computed(controller: Controller, precision: str, x: Tensor, reset: Tensor, carry: Carry) -> dict[str, Tensor]:
    """Outputs, without a gradient too, last carries, and gradients of the mean of their squares."""
    with torch.no_grad():
        alone, _ = scanned(controller, precision, x, reset, carry)
    y, last = scanned(controller, precision, x, reset, carry)
    named = {"x": x, **carry, **dict(controller.named_parameters())}
    loss = sum(value.double().square().mean() for value in (y, *last.values()))
    gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    outputs = {"y": y, "y without gradient": alone, **{f"last {name}": value for name, value in last.items()}}
    return outputs | dict(zip(map("d{}".format, named), gradients, strict=True))


def _distance(actual: Tensor, expected: Tensor) -> float:
    error = (actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)
    return float(error.detach().nan_to_num(1e9, posinf=1e9))
