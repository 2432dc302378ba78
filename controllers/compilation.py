"""Compiling scans before processes start that would each compile them."""

from collections.abc import Callable
from pathlib import Path

import torch

from controllers.controller import Controller


def compile_ahead(controller: Controller, kind: str, note: Callable[[str], None]) -> None:
    """Where the scans of this kind are compiled on this machine's CPU and never were, do it now.

    Args:
        controller: one of them.
        kind: its name, under which it is remembered.
        note: is told beforehand, as it takes up to half a minute.
    """
    if controller.backend_on(torch.device("cpu")) != "numba":
        return
    from controllers.scans.compiled import machine_code_folder  # here, as not all have numba

    folder = machine_code_folder()
    mark = Path(folder or "", f"{kind.replace('/', '_')}.compiled")
    if folder is None or mark.exists():
        return
    note(f"compiling the scans of {kind} for this machine, once: up to half a minute")
    x_BD, reset_B, carry = (
        torch.zeros(1, controller.input_size),
        torch.zeros(1, dtype=torch.bool),
        controller.initial_carry(1),
    )
    with torch.no_grad():
        controller.step(x_BD, reset_B, carry)
    y_TBH, _ = controller.scan(x_BD.unsqueeze(0), reset_B.unsqueeze(0), carry)
    torch.autograd.grad(y_TBH.sum(), list(controller.parameters()), allow_unused=True)
    mark.touch()
