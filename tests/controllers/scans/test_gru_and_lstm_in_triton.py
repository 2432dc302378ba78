"""The Triton kernels of GRU and LSTM, under Triton's interpreter, against the loop over their cells."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Generator

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.contract import CHECKS, Check
from tests.controllers.scans.weighed import gradients_of_two_layouts, scan_and_loop

KINDS = ("gru", "lstm")
INPUT = 3
SLOW = ("... in float32", "... at any width", "split is the whole", "finite differences")  # when interpreted


@pytest.fixture
def recurrence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the kernels share; importing it makes them interpreted ones for the rest of the process."""
    pytest.importorskip("triton", reason="triton is for Linux")
    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in for a GPU where there is none")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from mneme.controllers.scans import persistent

    return persistent


def controller(kind: str, hidden: int, input_size: int = INPUT, generator: Generator | None = None) -> Controller:
    settings = ControllerSettings(kind=kind, hidden_size=hidden, initial_carry="learned", backend="triton")
    built = build_controller(settings, input_size, 10, generator or Generator().manual_seed(0))
    assert built.backend_on(torch.device("cpu")) == "triton"
    return built


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name.replace(" ", "-"), marks=[pytest.mark.slow] * (check.name in SLOW))
        for check in CHECKS
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_keep_the_contract(recurrence: ModuleType, kind: str, check: Check) -> None:
    finding = check.run(lambda input_size, generator: controller(kind, 6, input_size, generator))
    assert finding.passed, finding


@pytest.mark.parametrize("kind", KINDS)
def test_programs_that_share_lanes_hand_on_their_states(recurrence: ModuleType, kind: str) -> None:
    hidden, lanes = max(recurrence.UNITS) + 5, max(recurrence.LANES) + 3
    cut = recurrence.tiles(3, lanes, hidden, hidden, 3, 8, 1)
    assert cut.columns > 1 and cut.lane_blocks > 1 and hidden > cut.inner
    torch.testing.assert_close(*scan_and_loop(controller(kind, hidden), 3, lanes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_come_in_another_layout_are_the_same(recurrence: ModuleType, kind: str) -> None:
    torch.testing.assert_close(*gradients_of_two_layouts(controller(kind, 4), 3, 5), rtol=0, atol=0)


class AtOnce:
    """A kernel whose programs the interpreter runs at the same time, in threads; they number themselves."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.programs: list[int] = []  # of each launch

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.programs += grid
            with ThreadPoolExecutor(*grid) as pool:
                for done in [pool.submit(self.kernel[1,], *arguments, **constants) for _ in range(*grid)]:
                    done.result()

        return launch


@pytest.mark.parametrize("kind", KINDS)
def test_programs_that_run_at_once_wait_for_each_other(
    recurrence: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from triton.runtime import interpreter

    module = sys.modules[f"mneme.controllers.scans.{kind}.triton"]
    kernels = [AtOnce(module._forward_kernel), AtOnce(module._backward_kernel)]
    patched = interpreter._patch_lang(kernels[0].kernel.fn)  # once for all threads, instead of once in each
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: interpreter._LangPatchScope())
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *arguments: None)
    for name, kernel in zip(("_forward_kernel", "_backward_kernel"), kernels, strict=True):
        monkeypatch.setattr(module, name, kernel)
    monkeypatch.setattr(module, "processors", lambda device: 6)
    monkeypatch.setattr(recurrence, "LANES", (4,))
    monkeypatch.setattr(recurrence, "UNITS", (4,))
    try:
        actual, expected = scan_and_loop(controller(kind, 10), 9, 7)
    finally:
        patched.restore()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert [kernel.programs for kernel in kernels] == [[6], [6]]  # one launch each, of 2 blocks of lanes x 3 of units


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near_the_loop_in_double_precision(recurrence: ModuleType, kind: str) -> None:
    generator = Generator().manual_seed(2)
    rounded = controller(kind, 20).half()
    exact = controller(kind, 20).double()
    exact.load_state_dict(rounded.state_dict())
    x = torch.randn(9, 5, INPUT, generator=generator).half()
    reset = torch.rand(9, 5, generator=generator) < 0.2
    expected, _ = exact.reference_scan(x.double(), reset, exact.initial_carry(5))
    y, last = rounded.scan(x, reset, rounded.initial_carry(5))
    assert all(value.dtype == torch.float16 for value in (y, *last.values()))
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-3)
    expected_gradients = torch.autograd.grad(expected.square().sum(), list(exact.parameters()))
    gradients = torch.autograd.grad(y.float().square().sum(), list(rounded.parameters()))
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient.double() - wanted).norm() < 3e-3 * wanted.norm()


@pytest.mark.parametrize("processors", [1, 30, 132])
@pytest.mark.parametrize("batch,hidden", [*product((1, 64, 1000), (1, 100, 128, 513))])
def test_tiles_cover_all_and_fit(recurrence: ModuleType, batch: int, hidden: int, processors: int) -> None:
    for inner, products, itemsize in product((hidden, 4 * hidden), (1, 3, 4), (2, 4, 8)):
        cut = recurrence.tiles(7, batch, hidden, inner, products, itemsize, processors)
        assert cut.lanes * cut.lane_blocks >= batch > cut.lanes * (cut.lane_blocks - 1)
        assert cut.units * cut.columns >= hidden > cut.units * (cut.columns - 1)
        assert cut.span == (7 if cut.columns <= processors else 1)
        assert cut.inner * (cut.lanes + products * cut.units) * itemsize <= recurrence.STAGE_BYTES


@pytest.mark.parametrize(
    "batch,hidden,forward,backward",
    [(64, 128, (16, 128), (16, 128)), (64, 512, (32, 16), (16, 32)), (1024, 512, (128, 32), (64, 64))],
)
def test_the_estimate_chooses_the_tiles_that_its_table_names(
    recurrence: ModuleType, batch: int, hidden: int, forward: tuple[int, int], backward: tuple[int, int]
) -> None:
    assert recurrence.tiles(128, batch, hidden, hidden, 3, 4, 132)[:2] == forward
    assert recurrence.tiles(128, batch, hidden, 3 * hidden, 1, 4, 132)[:2] == backward


def test_the_kernels_compile_for_hopper_and_fit_into_its_shared_memory() -> None:
    pytest.importorskip("triton", reason="triton is for Linux")
    compiled = subprocess.run(
        [sys.executable, "-m", "tests.controllers.scans.compile_for_hopper"],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        check=True,
        capture_output=True,
        text=True,
    )
    reports = [json.loads(line) for line in compiled.stdout.splitlines()]
    assert len(reports) == 10
    assert all(report["shared_bytes"] <= 227 * 1024 for report in reports), reports
    of_products = [report for report in reports if ".gru." in report["kernel"] or ".lstm." in report["kernel"]]
    assert all(report["spilled_bytes"] <= 16 for report in reports if report not in of_products), reports
    assert all(report["shared_bytes"] > 0 for report in reports if "selective" not in report["kernel"]), reports
