"""Check and time every scan of every sequence model on a GPU: `python -m benchmarks.kernels`. Needs torch and numpy.

Each kind and backend is a process of its own, so that a kernel that fails or hangs costs only itself. First it is held
against the loop over the cell in float64: outputs, last carries, and gradients in everything. Then it is timed, in
turns of (B, T, H), forward alone and with the backward pass, with resets at 2 % of the steps; beside GRU and LSTM stand
`torch.nn`'s own, cuDNN's on a GPU, which cannot reset. The share says how near a time comes to its floor: what the
matrix products or the inputs and outputs take at the rates that this device reaches on large ones.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from mneme.controllers import CONTROLLERS, Carry, Controller, ControllerSettings, build_controller
from mneme.controllers.scans.backends import REFERENCE, chosen_backend
from mneme.experiments.machine import describe_machine, versions

RESULTS = Path(__file__).parent / "results"
MODULES = {"gru": nn.GRU, "lstm": nn.LSTM}
MODULE = "torch.nn"  # the name of theirs among the backends
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 0.2}  # |error| / |value|, of whole tensors
CHECKED = ((33, 37, 64), (5, 130, 200))  # steps, lanes, units: with borders of blocks everywhere
SHAPES = tuple(product((128, 1024), (64, 256, 1024), (128, 512)))  # steps, lanes, units
QUICK = ((16, 8, 32),)
ZERO_START = ("mamba_ssm",)  # backends without a learned initial carry; their float32 is TF32
REFERENCE_STEPS = 128  # more would take the loop minutes
RESETS = 0.02
SECONDS, ROUNDS = 0.2, (5, 50)  # about how long each time is measured for, and in how many rounds


@dataclass(frozen=True, kw_only=True)
class Error:
    """The error of a backend against the loop in float64. (Triton's interpreter cannot multiply in bfloat16.)"""

    precision: str
    shape: tuple[int, int, int]  # T, B, H
    worst: float  # |error| / |value|
    where: str  # the tensor that it belongs to, or why there is none
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians of one backend at one size."""

    precision: str
    shape: tuple[int, int, int]  # T, B, H
    forward_ms: float
    both_ms: float  # forward and backward
    forward_share: float  # of the time that is its floor
    both_share: float


class Rates(NamedTuple):
    """The rates that the device reaches."""

    flops: float  # a second, in a large matrix product
    bytes: float  # a second, read and written by a large copy


def main() -> int:
    """Measure all contestants and store the results, or, as a contestant, measure and print."""
    arguments = _parse()
    if arguments.contestant:
        kind, backend = arguments.contestant.split("/")
        print(json.dumps(_contest(kind, backend, arguments)))
        return 0
    device = torch.device(arguments.device)
    outcomes: dict[str, Any] = {}
    for kind in arguments.kinds:
        for backend in _backends(kind, device):
            outcomes[f"{kind}/{backend}"] = _in_a_process(f"{kind}/{backend}", arguments.timeout)
    for line in _table(outcomes):
        print(line)
    if arguments.name:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        document = {"machine": describe_machine(), "device": name, "versions": _versions(), "results": outcomes}
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{arguments.name}.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
        print(f"Stored in {path}")
    return 0 if all(_sound(outcome) for outcome in outcomes.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=["tf32"], help="that are timed")
    parser.add_argument("--quick", action="store_true", help="one small size: does everything run?")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one contestant may take")
    parser.add_argument("--name", help="of the JSON file under benchmarks/results/; without one nothing is stored")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    return parser.parse_args()


def _backends(kind: str, device: torch.device) -> list[str]:
    """Theirs, ours that run here, and the loop."""
    offered = (*_build(kind, 8, "auto").backends, REFERENCE)
    ours = [backend for backend in offered if chosen_backend(backend, device, offered) == backend]
    return [MODULE] * (kind in MODULES) + ours


def _build(kind: str, hidden: int, backend: str, *, like: str | None = None) -> Controller:
    """With the initial carry that `like`, another backend if given, can have."""
    initial: Literal["zero", "learned"] = "zero" if (like or backend) in ZERO_START else "learned"
    settings = ControllerSettings(kind=kind, hidden_size=hidden, backend=backend, initial_carry=initial)
    return build_controller(settings, hidden, 128, Generator().manual_seed(0))


def _in_a_process(contestant: str, timeout: float) -> dict[str, Any]:
    print(contestant, flush=True)
    command = [sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:], "--contestant", contestant]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failure": f"no end after {timeout:g} s"}
    if done.returncode:
        return {"failure": done.stderr.strip()[-2000:]}
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _contest(kind: str, backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    errors = []
    if backend not in (MODULE, REFERENCE):
        precisions = [name for name in PRECISIONS if backend not in ZERO_START or name != "float32"]
        for precision, shape in product(precisions, QUICK if arguments.quick else CHECKED):
            try:
                worst = _worst(kind, backend, precision, shape, device)
            except RuntimeError as error:
                worst = math.inf, f"{type(error).__name__}: {str(error).splitlines()[0]}"
            passed = worst[0] < TOLERANCES[precision]
            errors.append(Error(precision=precision, shape=shape, worst=worst[0], where=worst[1], passed=passed))
    timings = []
    for precision, shape in product(arguments.precisions, QUICK if arguments.quick else SHAPES):
        if backend != REFERENCE or shape[0] <= REFERENCE_STEPS:
            timings.append(_time(kind, backend, precision, shape, device))
    return {
        "errors": [asdict(error) for error in errors],
        "timings": [asdict(timing) for timing in timings if timing is not None],
    }


def _set(precision: str) -> torch.dtype:
    """Allow what `precision` allows, for torch's and cuDNN's products."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return PRECISIONS[precision]


def _arguments(
    controller: Controller, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Carry]:
    """Drawn on the CPU, so that every precision and device has the same."""
    T, B, _ = shape
    generator = Generator().manual_seed(1)
    reset_TB = (torch.rand(T, B, generator=generator) < RESETS).to(device)
    x_TBD = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    carry = {k: v.detach().to(device, dtype).requires_grad_() for k, v in controller.initial_carry(B).items()}
    return x_TBD, reset_TB, carry


def _worst(
    kind: str, backend: str, precision: str, shape: tuple[int, int, int], device: torch.device
) -> tuple[float, str]:
    """The largest of `_distance` to the loop, and the tensor that it belongs to."""
    dtype = _set(precision)
    results = []
    reference = _build(kind, shape[2], REFERENCE, like=backend)
    for built, to in ((_build(kind, shape[2], backend), dtype), (reference, torch.float64)):
        controller = built.to(device, dtype).to(to)  # the reference starts from the same rounded parameters
        x, reset, carry = _arguments(controller, shape, dtype, device)
        x, carry = x.to(to), {name: value.to(to) for name, value in carry.items()}
        y, last = controller.scan(x, reset, carry)
        named = {"x": x, **carry, **dict(controller.named_parameters())}
        loss = sum(value.double().square().mean() for value in (y, *last.values()))
        gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)  # type: ignore[arg-type]
        outputs = {"y": y, **{f"last {name}": value for name, value in last.items()}}
        results.append({**outputs, **dict(zip(map("d{}".format, named), gradients, strict=True))})
    errors = {name: _distance(results[0][name], value) for name, value in results[1].items()}
    where = max(errors, key=errors.__getitem__)
    return errors[where], where


def _distance(actual: Tensor, expected: Tensor) -> float:
    error = (actual.double() - expected).norm() / expected.norm().clamp(min=1e-12)
    return float(error.detach().nan_to_num(torch.inf))


def _time(kind: str, backend: str, precision: str, shape: tuple[int, int, int], device: torch.device) -> Timing | None:
    """None where the device's memory does not suffice."""
    dtype = _set(precision)
    T, B, H = shape
    controller = _build(kind, H, "auto" if backend == MODULE else backend).to(device, dtype)
    x, reset, carry = _arguments(controller, shape, dtype, device)
    module = MODULES[kind](H, H).to(device, dtype) if backend == MODULE else controller

    def forward() -> Tensor:
        y: Tensor = module(x)[0] if backend == MODULE else controller.scan(x, reset, carry)[0]
        return y

    rates = _rates(precision, device)
    weights = sum(parameter.numel() for parameter in module.parameters())
    floor = max(2 * weights * T * B / rates.flops, 2 * T * B * H * x.element_size() / rates.bytes)
    inputs = [x, *module.parameters()]
    dy = torch.randn(T, B, controller.output_size).to(x)
    try:
        with torch.no_grad():
            alone = _median_seconds(forward, device)
        both = _median_seconds(lambda: torch.autograd.grad(forward(), inputs, dy, allow_unused=True), device)
    except torch.OutOfMemoryError:
        return None
    return Timing(
        precision=precision,
        shape=shape,
        forward_ms=1e3 * alone,
        both_ms=1e3 * both,
        forward_share=floor / alone,
        both_share=3 * floor / both,  # the backward pass has two products for each of the forward one's
    )


@cache
def _rates(precision: str, device: torch.device) -> Rates:
    dtype = _set(precision)
    size = 8192 if device.type == "cuda" else 512
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    large = torch.empty(size, 8 * size, device=device)
    return Rates(
        flops=2 * size**3 / _median_seconds(lambda: left @ right, device),
        bytes=2 * large.numel() * large.element_size() / _median_seconds(lambda: large.clone(), device),
    )


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of as many rounds as fit into SECONDS, after one to warm up and one to see how long it takes."""
    run()
    first = _seconds(run, 1, device)[0]
    least, most = ROUNDS
    return median(_seconds(run, min(most, max(least, int(SECONDS / first))), device))


def _seconds(run: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    if device.type != "cuda":
        marks = [perf_counter()]
        for _ in range(rounds):
            run()
            marks.append(perf_counter())
        return [stop - start for start, stop in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(stop) for start, stop in pairwise(events)]


def _sound(outcome: dict[str, Any]) -> bool:
    """True if it ran and is right; bfloat16, in which some kinds do not run, is reported only."""
    return "failure" not in outcome and all(e["passed"] or e["precision"] == "bfloat16" for e in outcome["errors"])


def _table(outcomes: dict[str, Any]) -> Sequence[str]:
    lines = []
    for contestant, outcome in outcomes.items():
        if "failure" in outcome:
            lines.append(f"{contestant:24} failed: {outcome['failure'].splitlines()[-1]}")
            continue
        for e in outcome["errors"]:
            verdict = "right" if e["passed"] else "WRONG"
            where = f"|error| / |value| at most {e['worst']:.1e} (in {e['where']})"
            lines.append(f"{contestant:24} {e['precision']:9} T, B, H = {e['shape']}: {verdict}, {where}")
    lines.append(f"{'':24} {'':9} {'T, B, H':>18} {'forward':>22} {'with backward':>22}   times theirs, share of floor")
    for contestant, outcome in outcomes.items():
        theirs = outcomes.get(f"{contestant.split('/')[0]}/{MODULE}", {}).get("timings", [])
        for t in outcome.get("timings", []):
            same = [o for o in theirs if (o["precision"], o["shape"]) == (t["precision"], t["shape"])]
            cells = []
            for key in ("forward", "both"):
                ratio = f"{t[f'{key}_ms'] / same[0][f'{key}_ms']:5.2f}" if same else "    –"
                cells.append(f"{t[f'{key}_ms']:9.3f} ms {ratio} {100 * t[f'{key}_share']:3.0f} %")
            lines.append(f"{contestant:24} {t['precision']:9} {t['shape']!s:>18} " + " ".join(cells))
    return lines


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", *(name for name in ("triton", "mamba_ssm") if find_spec(name)))
    return versions(*packages) | {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


if __name__ == "__main__":
    sys.exit(main())
