"""The device on which the learner works, and how its products are rounded there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Controller
from mneme.learner.settings import LearnerSettings, Precision


def on_host(x: Tensor) -> np.ndarray:
    """A copy in the host's memory, for which the device has to be waited for."""
    return x.cpu().numpy().copy()


def resolve_device(name: str) -> torch.device:
    """The device of this machine that `learner.device` names.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"learner.device is {name!r}; use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"learner.device is {name!r} but this machine has no usable GPU; use auto or cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(
            f"learner.device is {name!r} but this machine has {torch.cuda.device_count()} usable GPUs, which are "
            f"counted from 0; use a lower number, or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"learner.device is {name!r} but this machine has no Metal GPU; use auto or cpu")
    return device


def remarks(settings: LearnerSettings, device: torch.device, controller: Controller) -> list[str]:
    """Sentences on what the settings come to on this device, where that may surprise."""
    said = []
    if device.type == "mps":
        backend = controller.backend_on(device)
        said.append(f"learner.device is mps, where scans run in the backend {backend}; nobody has measured it yet")
    if settings.precision == "tf32" and device.type != "cuda":
        said.append(f"learner.precision is tf32, which NVIDIA's GPUs have; on {device.type} it is float32")
    if settings.precision == "bf16" and not _multiplies_in_bfloat16(device):
        said.append(
            f"learner.precision is bf16, but this machine's {'GPU' if device.type == 'cuda' else 'processor'} has no "
            f"instructions for it, so that it is slower than float32"
        )
    return said


def _multiplies_in_bfloat16(device: torch.device) -> bool:
    """True if products of this type are not emulated; assumed off CPU and CUDA."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return True


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Whether CUDA may round float32 operands to TF32, of products and convolutions; off CUDA nothing is changed."""
    if device.type != "cuda":
        yield
        return
    places: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = precision == "tf32"
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
