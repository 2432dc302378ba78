"""Which implementation of a scan runs on a device."""

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from warnings import warn

import torch

REFERENCE = "reference"
"""The loop over the cell, which every controller has."""

_PACKAGES = {"mamba_ssm": ("mamba_ssm", "einops", "triton")}  # of backends that need other packages than their name


def chosen_backend(
    setting: str, device: torch.device, offered: Sequence[str], dtype: torch.dtype = torch.float32
) -> str:
    """The backend that runs on `device`.

    Args:
        setting: "auto", or the name of a backend, which is chosen if it can run on the device. (Learner and rollout
            workers share the setting, and may be on different devices.)
        device: of the tensors.
        offered: what the controller has besides the reference, fastest first: "mamba_ssm", "triton", "numba", "torch".
        dtype: of the states.
    """
    if setting == REFERENCE:
        return REFERENCE
    wanted = (setting, *offered) if setting in offered else offered
    return next(name for name in wanted if _runs(name, device, dtype, forced=name == setting))


def _runs(name: str, device: torch.device, dtype: torch.dtype, forced: bool) -> bool:
    return name == "torch" or obstacle(name, device, dtype, forced) is None


def obstacle(name: str, device: torch.device, dtype: torch.dtype, forced: bool) -> str | None:
    """Why the backend cannot run on tensors of this device and type, as the end of a sentence; none if it can."""
    if name == "numba":
        if device.type != "cpu":
            return "it is made for CPUs"
        if dtype not in (torch.float32, torch.float64):
            return f"it does not take {dtype}"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            return "NUMBA_DISABLE_JIT forbids it to compile"
    elif device.type != "cuda" and not (forced and os.environ.get("TRITON_INTERPRET") == "1"):
        return "it is made for CUDA devices"
    return None if _installed(name) else f"{' or '.join(_PACKAGES.get(name, (name,)))} is not installed"


@cache
def _installed(backend: str) -> bool:
    if any(find_spec(package) is None for package in _PACKAGES.get(backend, (backend,))):
        return False
    if backend == "numba":
        try:
            import_module(backend)
        except Exception as error:  # each numba is made for some versions of numpy
            warn(f"numba cannot be imported, so scans are not compiled: {error}", stacklevel=2)
            return False
    return True
