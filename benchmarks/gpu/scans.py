"""The scans that are checked and timed on a GPU: every kind of controller in each of its implementations.

A contestant is a kind and a backend, `gru/triton`, and an item of a stage one of them in one precision. Beside GRU and
LSTM stand `torch.nn`'s own, cuDNN's on a GPU, which cannot reset. `triton@2` is the kernel with the tiles that the
estimate in `scans.persistent` finds third best, so that the estimate is measured too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Literal, NamedTuple
from unittest.mock import patch

import torch
from torch import Generator, Tensor, nn

from mneme.controllers import CONTROLLERS, Carry, Controller, ControllerSettings, build_controller
from mneme.controllers.precision import autocast
from mneme.controllers.scans.backends import REFERENCE, chosen_backend

MODULES = {"gru": nn.GRU, "lstm": nn.LSTM}
MODULE = "torch.nn"  # the name of theirs among the backends
TILED = "triton"  # the backend whose work is divided by an estimate
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "bfloat16": torch.bfloat16}
"""Types of tensors. `tf32` and `bf16` round products, as `learner.precision` does. In `bfloat16` there is nothing else,
as `torch.nn` has it too; our other kinds do not run in it."""
ZERO_START = ("mamba_ssm",)  # backends without a learned initial carry; their float32 is TF32
RESETS = 0.02  # share of the steps
FIRST = ("gru", "lstm", "mamba2", "mingru", "mamba", "lru")  # the kinds that come first where time is short

Shape = tuple[int, int, int]  # T, B, H


class Contestant(NamedTuple):
    """What an item is about."""

    kind: str
    backend: str
    precision: str

    @classmethod
    def of(cls, item: str) -> "Contestant":
        """The contestant that `str` gave."""
        return cls(*item.split("/"))

    def __str__(self) -> str:
        return "/".join(self)


def contestants(device: torch.device, kinds: Sequence[str], precisions: Sequence[str]) -> list[Contestant]:
    """Ours that run on this device, and theirs, for each of these precisions; fastest backends first."""
    ordered = sorted(kinds, key=lambda kind: FIRST.index(kind) if kind in FIRST else len(FIRST))
    return [
        Contestant(kind, backend, precision)
        for precision in precisions
        for kind in ordered
        if precision != "bfloat16" or kind in MODULES
        for backend in _backends(kind, precision, device)
    ]


def other_tiles(device: torch.device, kinds: Sequence[str], many: int) -> list[Contestant]:
    """GRU and LSTM with so many other tiles, where their kernels run."""
    found = contestants(device, [kind for kind in kinds if kind in MODULES], ["tf32"])
    ours = [contestant for contestant in found if contestant.backend == TILED]
    return [c._replace(backend=f"{TILED}@{rank}") for c in ours for rank in range(1, many + 1)]


@contextmanager
def tiled(contestant: Contestant) -> Iterator[None]:
    """The kernels of GRU and LSTM take the tiles that the contestant names."""
    _, _, rank = contestant.backend.partition("@")
    if not rank:
        yield
        return
    from mneme.controllers.scans.persistent import ranked_tiles  # here, as triton may be missing

    module = import_module(f"mneme.controllers.scans.{contestant.kind}.triton")
    with patch.object(module, "tiles", lambda *sizes: ranked_tiles(*sizes)[int(rank)]):
        yield


def _backends(kind: str, precision: str, device: torch.device) -> list[str]:
    offered, dtype = build(kind, 8, "auto").backends, PRECISIONS[precision]
    ours = [backend for backend in offered if chosen_backend(backend, device, offered, dtype) == backend]
    if precision in ("float32", "bf16") or device.type != "cuda":  # nor does Triton's interpreter run theirs
        ours = [backend for backend in ours if backend not in ZERO_START]
    if precision == "bfloat16" and device.type != "cuda":  # in which the interpreter cannot multiply
        ours = [backend for backend in ours if backend != "triton"]
    return [MODULE] * (kind in MODULES) + sorted(ours, key="torch".__eq__)


def every_kind() -> list[str]:
    """The kinds that have something to compute over time."""
    return [kind for kind in CONTROLLERS if kind != "mlp"]


def build(kind: str, hidden: int, backend: str, *, like: str | None = None) -> Controller:
    """With the initial carry that `like`, another backend if given, can have."""
    initial: Literal["zero", "learned"] = "zero" if (like or backend) in ZERO_START else "learned"
    name, _, _ = backend.partition("@")
    settings = ControllerSettings(kind=kind, hidden_size=hidden, backend=name, initial_carry=initial)
    return build_controller(settings, hidden, 128, Generator().manual_seed(0))


def reference(contestant: Contestant, hidden: int) -> Controller:
    """The loop over the cell, with the contestant's parameters."""
    return build(contestant.kind, hidden, REFERENCE, like=contestant.backend)


def arguments(
    controller: Controller, shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Carry]:
    """Inputs, reset flags and carry, drawn on the CPU, so that every precision and device has the same."""
    T, B, _ = shape
    generator = Generator().manual_seed(1)
    reset_TB = (torch.rand(T, B, generator=generator) < RESETS).to(device)
    x_TBD = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    carry = {k: v.detach().to(device, dtype).requires_grad_() for k, v in controller.initial_carry(B).items()}
    return x_TBD, reset_TB, carry


def scanned(
    controller: Controller, precision: str, x_TBD: Tensor, reset_TB: Tensor, carry: Carry
) -> tuple[Tensor, Carry]:
    """Outputs and last carry; in `bf16` under autocast, which as in the learner ends before the backward pass."""
    with autocast(x_TBD.device, enabled=precision == "bf16"):
        return controller.scan(x_TBD, reset_TB, carry)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Allow TF32, or not, for torch's and cuDNN's products."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
