"""Compiling scans before processes start that would each compile them."""

import logging
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from mneme.controllers.acting import Actor, heads_compile
from mneme.controllers.controller import Controller
from mneme.controllers.mlp import layers_of
from mneme.controllers.policy import Policy

_log = logging.getLogger(__name__)

_OUTDATED = 90 * 24 * 3600  # seconds


def compile_policy(policy: Policy, kind: str) -> None:
    """Do as `compile_ahead` with the policy's controller, of this kind, and as `compile_acting`."""
    compile_ahead(policy.controller, kind)
    compile_acting(policy)


def compile_acting(policy: Policy) -> None:
    """Compile what an `Actor` needs besides the scans, as `compile_ahead` compiles those."""
    if heads_compile(policy):
        hidden = layers_of(policy.encoder) or policy.policy_hidden
        _once("acting_by_hidden_layers" if hidden else "acting", "what acts", lambda: _act(policy))


def _act(policy: Policy) -> None:
    observations = {name: x[0] for name, x in policy.blank(1, 1).items()}
    reset_B, uniform_BN = torch.zeros(1, dtype=torch.bool), torch.zeros(1, policy.action_distribution.noise_size)
    Actor(policy).act(observations, reset_B, policy.initial_carry(1), uniform_BN)


def compile_ahead(controller: Controller, kind: str) -> None:
    """Compile this kind's scans and its step now, if they run in numba on this machine's CPU and were never compiled
    here.

    Args:
        controller: an instance of the kind.
        kind: its name, under which the compilation is remembered.
    """
    if controller.steps_compile(torch.device("cpu")):
        _once(kind, f"the scans of {kind}", lambda: _scan_and_step(controller))


def _scan_and_step(controller: Controller) -> None:
    x_TBD, reset_TB = torch.zeros(1, 1, controller.input_size), torch.zeros(1, 1, dtype=torch.bool)
    y_TBH, _ = controller.scan(x_TBD, reset_TB, controller.initial_carry(1))
    torch.autograd.grad(y_TBH.sum(), list(controller.parameters()), allow_unused=True)
    with torch.no_grad():
        controller.stepper()(x_TBD[0], reset_TB[0], controller.initial_carry(1))


def _once(name: str, what: str, run: Callable[[], None]) -> None:
    """Run what compiles, unless it has run on this machine."""
    from mneme.controllers.scans.machine_code import machine_code_folder  # here, as not all have numba

    folder = machine_code_folder()
    if folder is None:
        _log.warning(
            f"no folder can be written where the machine code of {what} could be kept, so that every process compiles "
            f"it: up to half a minute each; name one that can be in NUMBA_CACHE_DIR"
        )
        return
    mark = Path(folder, f"{name.replace('/', '_')}.compiled")
    if mark.exists() and any(mark.parent.rglob("*.nbi")):
        return
    _log.info(f"compiling {what} for this machine, once: up to half a minute")
    run()
    with suppress(OSError):
        mark.touch()
        _remove_outdated(mark.parent)


def _remove_outdated(folder: Path) -> None:
    """Machine code of other sources, for which no kind was compiled in months; nothing that may be someone else's."""
    for other in folder.parent.iterdir():
        ours = other != folder and re.fullmatch("[0-9a-f]{16}", other.name) and any(other.glob("*.compiled"))
        if ours and time.time() - other.stat().st_mtime > _OUTDATED:
            shutil.rmtree(other, ignore_errors=True)
