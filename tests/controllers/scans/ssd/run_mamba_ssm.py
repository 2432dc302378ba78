"""mamba_ssm's kernels against our own forms in float64: on a GPU where there is one, else in Triton's interpreter.

A program of its own, as Triton decides once in a process whether it interprets. Prints a line of JSON a case: the
largest error in outputs, last states and gradients, over 1 + the largest number expected there.
"""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.scans.ssd import mamba_ssm
from mneme.controllers.scans.ssd.mamba_ssm import mamba_ssm_scan
from mneme.controllers.scans.ssd.torch import chunked_scan
from tests.controllers.scans.weighed import with_gradients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case(NamedTuple):
    """A problem's size, the share of its steps that reset, and those at which all lanes do."""

    steps: int
    chunk: int
    resets: float
    all_at: tuple[int, ...] = ()
    lanes: int = 2
    heads: int = 2
    head: int = 8
    states: int = 5

    def flags(self) -> Tensor:
        reset_TB = torch.rand(self.steps, self.lanes, generator=Generator().manual_seed(1)) < self.resets
        reset_TB[list(self.all_at)] = True
        return reset_TB.to(DEVICE)


SCANS = {
    "no resets, and a chunk that is not full": Case(17, 16, 0.0, lanes=1),
    "resets anywhere, and at the borders of chunks": Case(35, 16, 0.1, (15, 32)),
    "a reset at the first step": Case(3, 16, 0.0, (0,), lanes=1),
    "one step of sizes that are no powers of two": Case(1, 24, 0.0, (), 1, 3, 12, 20),
}


def main() -> None:
    if DEVICE.type == "cpu":
        stand_in_for_a_gpu()
    for name, case in SCANS.items():
        mamba_ssm.CHUNK = case.chunk
        report(name, scans(case, exact=False), scans(case, exact=True))
    report("mamba2", controllers(exact=False), controllers(exact=True))


def stand_in_for_a_gpu() -> None:
    """Let the interpreter run without a device, and without timing anything: each kernel takes its least blocks."""
    from triton.runtime.autotuner import Autotuner

    torch.cuda.device = lambda index: nullcontext()  # type: ignore[assignment,misc]
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=4)  # type: ignore[assignment]
    mamba_ssm._kernels()
    modules = [module for name, module in sys.modules.items() if name.startswith("mamba_ssm.ops.triton.ssd")]
    for kernel in {value for module in modules for value in vars(module).values() if isinstance(value, Autotuner)}:
        kernel.configs = [min(kernel.configs, key=lambda config: sum(config.kwargs.values()))]


def scans(case: Case, exact: bool) -> list[Tensor]:
    """Outputs, last state and the gradient of everything."""
    generator = Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator).to(DEVICE)
        return drawn.double() if exact else drawn

    T, _, _, _, B, H, P, N = case
    x, write, read, h = draw(T, B, H, P), draw(T, B, N), draw(T, B, N), draw(B, H, P, N)
    dt, rate = draw(T, B, H).sigmoid(), draw(H).exp()
    inputs = [value.requires_grad_() for value in (x, dt, rate, write, read, h)]
    if exact:
        outputs = chunked_scan(x * dt.unsqueeze(-1), -rate * dt, write, read, case.flags(), h, None, 16)
    else:
        outputs = mamba_ssm_scan(x, dt, rate, write, read, case.flags(), h, 1)
    return with_gradients([value.double() for value in outputs], inputs)


def controllers(exact: bool) -> list[Tensor]:
    """The same of a whole controller, for the loop over its cell if `exact`."""
    settings = ControllerSettings(kind="mamba2", hidden_size=8, backend="reference" if exact else "mamba_ssm")
    mamba_ssm.CHUNK = 16
    built = build_controller(settings, 5, 10, Generator().manual_seed(0)).to(DEVICE)
    assert built.backend_on(DEVICE) == settings.backend
    case, generator = Case(17, 16, 0.2, lanes=1), Generator().manual_seed(2)
    x = torch.randn(case.steps, case.lanes, 5, generator=generator).to(DEVICE)
    drawn = {k: torch.rand(v.shape, generator=generator).to(DEVICE) for k, v in built.initial_carry(case.lanes).items()}
    if exact:
        built, x, drawn = built.double(), x.double(), {name: value.double() for name, value in drawn.items()}
    carry = {name: value.requires_grad_() for name, value in drawn.items()}
    y, last = built.scan(x.requires_grad_(), case.flags(), carry)
    outputs = [value.double() for value in (y, *last.values())]
    return with_gradients(outputs, [x, *carry.values(), *built.parameters()])


def report(name: str, actual: list[Tensor], expected: list[Tensor]) -> None:
    pairs = [(a.detach().double(), e.detach()) for a, e in zip(actual, expected, strict=True)]
    error = max(float((a - e).abs().max() / (1 + e.abs().max())) for a, e in pairs)
    print(json.dumps({"case": name, "error": error}))


if __name__ == "__main__":
    main()
