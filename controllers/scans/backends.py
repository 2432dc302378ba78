"""Which implementation of a scan runs: one function decides, and a setting may force it."""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch

REFERENCE = "reference"
"""The loop over the cell, which every controller has."""

_PACKAGES = {"mamba_ssm": ("mamba_ssm", "einops", "triton")}  # where a backend needs others than its own name's


def chosen_backend(setting: str, device: torch.device, offered: Sequence[str]) -> str:
    """The backend that runs on `device`.

    Args:
        setting: "auto", or the name of a backend, which is taken where it can run. Rollout workers act on CPUs, where
            kernels made for GPUs cannot.
        device: where the tensors are.
        offered: what the controller has besides the reference, fastest first: "mamba_ssm", "triton", "torch".
    """
    if setting == REFERENCE:
        return REFERENCE
    wanted = offered if setting == "auto" else (setting, "torch")
    interpreted = setting in ("triton", "mamba_ssm") and os.environ.get("TRITON_INTERPRET") == "1"
    able = device.type == "cuda" or interpreted
    return next(name for name in wanted if name == "torch" or (able and _installed(name)))


@cache
def _installed(backend: str) -> bool:
    return all(find_spec(package) is not None for package in _PACKAGES.get(backend, (backend,)))
