"""Trained environment steps per second: collected, and learned from in four epochs of four minibatches.

The kernels in which an update spends its time are told afterwards, as far as the profiler sees them.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.busy import BusyShare
from benchmarks.gpu.stages import Tell
from benchmarks.gpu.trainer import Run, Trainer, fast_backends, peak_bytes, settle

LANES, TINY_LANES = (16384, 65536, 4096, 1024), (8,)
SECONDS, TINY_SECONDS = 3.0, 0.05  # that each is timed for
WARM_UP = 3  # updates that are not timed
LISTED = 15  # kernels that are named

T = TypeVar("T")


def items(device: torch.device, kinds: list[str], tiny: bool) -> list[str]:
    """The GRU in every number of lanes, with a graph and without; the others with a graph. Without a GPU none has."""
    fast = fast_backends(device, kinds)
    many = TINY_LANES if tiny else LANES
    graph = "graph" if device.type == "cuda" else "device"
    wanted = [("gru", graph, many), ("lstm", graph, many), ("gru", "device", many[:2]), ("mamba2", graph, many[:1])]
    runs = [Run(place, kind, fast[kind], lanes) for kind, place, some in wanted if kind in fast for lanes in some]
    return list(dict.fromkeys(map(str, runs)))


def work(item: str, device: torch.device, tiny: bool, tell: Tell) -> None:
    """Tell steps per second, where the time goes, the most memory, and how busy the device is; then its kernels."""
    run = Run.of(item)
    trainer = Trainer(run, device, tiny)
    for _ in range(WARM_UP):
        trainer.learn(trainer.collect()[0])
    settle(device)
    spent = {"collecting": 0.0, "learning": 0.0}
    before, began = trainer.learner.env_steps, perf_counter()
    with BusyShare(device) as busy:
        while perf_counter() - began < (TINY_SECONDS if tiny else SECONDS):
            batch, _ = _timed(spent, "collecting", trainer.collect, device)
            _timed(spent, "learning", lambda batch=batch: trainer.learn(batch), device)
    seconds = perf_counter() - began
    tell(
        {
            "steps_per_second": (trainer.learner.env_steps - before) / seconds,
            "batch": run.lanes * trainer.episode,
            "shares": {name: value / seconds for name, value in spent.items()},
            "busy": busy.share,
            "peak_bytes": peak_bytes(device),
        }
    )
    tell({"kernels": _kernels(trainer, device)})


def _kernels(trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """One update as the profiler sees it: seconds by the clock and in kernels, how many of them, and the longest; on a
    CPU these are torch's operations."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    began = perf_counter()
    with profile(activities=[activity]) as seen:
        trainer.learn(trainer.collect()[0])
        settle(device)
        seconds = perf_counter() - began
    found = {
        event.key: ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) * 1e-6, event.count)
        for event in seen.key_averages()
    }
    spent = {name: of_one for name, of_one in found.items() if of_one[0] > 0}  # calls of the driver take none
    longest = sorted(spent, key=spent.__getitem__, reverse=True)[:LISTED]
    return {
        "seconds": seconds,
        "in_kernels": sum(of_one for of_one, _ in spent.values()),
        "launched": sum(count for _, count in spent.values()),
        "longest": {name: spent[name] for name in longest},
    }


def _timed(spent: dict[str, float], name: str, run: Callable[[], T], device: torch.device) -> T:
    began = perf_counter()
    result = run()
    settle(device)
    spent[name] += perf_counter() - began
    return result
