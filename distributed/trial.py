"""A controller of one's own, tried out before any actor starts."""

import torch

from mneme.controllers import Controller
from mneme.controllers.traces import no_traces, traced, traces_after


def try_out(controller: Controller, kind: str, *, traces: bool) -> None:
    """Refuse a controller of one's own that cannot take a step, or whose step does not fit the next.

    Args:
        controller: of any kind; those of this repository are trusted.
        kind: as the settings name it, `module:Class` where it is one's own.
        traces: whether its traces, if it has any, must work too.

    Raises:
        ValueError: it cannot; says why.
    """
    if ":" not in kind:
        return
    attempts = {"take two steps": _steps} | ({"have traces": _traces} if traces else {})
    for what, attempt in attempts.items():
        try:
            attempt(controller)
        except Exception as error:
            told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            sentence = " ".join(told.split())
            raise ValueError(f"{kind} cannot {what}: {sentence}; mneme check {kind} says more") from error


def _steps(controller: Controller) -> None:
    x_BD, reset_B = torch.zeros(2, controller.input_size, dtype=controller.dtype), torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        y_BH, carry = controller.step(x_BD, reset_B, controller.initial_carry(2))
        controller.step(x_BD, reset_B, carry)
    if y_BH.shape != (2, controller.output_size):
        raise ValueError(f"its output has shape {list(y_BH.shape)} instead of {[2, controller.output_size]}")
    if controller.cuts_gradients and controller.initial():
        x_TBD = x_BD.expand(2, *x_BD.shape).clone().requires_grad_()
        flags_TB = reset_B.expand(2, 2)
        y_TBH, _ = controller.scan(x_TBD, flags_TB, controller.initial_carry(2), ~flags_TB)
        (dx_TBD,) = torch.autograd.grad(y_TBH[1].sum(), x_TBD, allow_unused=True)
        if dx_TBD is not None and dx_TBD[0].any():
            raise ValueError("it sets cuts_gradients, and a gradient crosses a cut in its fast_scan")


def _traces(controller: Controller) -> None:
    cells, carry = controller.elementwise(), controller.initial_carry(2)
    x_TBD, reset_TB = torch.zeros(2, 2, controller.input_size, dtype=controller.dtype), torch.zeros(2, 2).bool()
    with torch.no_grad():
        runs = controller.elementwise_runs(x_TBD, reset_TB, carry)
    if not cells.keys() == runs.keys() <= carry.keys():
        raise ValueError(
            f"elementwise is of {sorted(cells)} and elementwise_runs of {sorted(runs)}; "
            f"both must be of the same parts of the carry, {sorted(carry)}"
        )
    traced(cells, carry, traces_after(cells, runs, reset_TB, no_traces(cells, 2)))
