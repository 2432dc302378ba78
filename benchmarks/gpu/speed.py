"""Trained environment steps per second: collected, and learned from in four epochs of four minibatches."""

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import torch

from benchmarks.gpu.busy import BusyShare
from benchmarks.gpu.stages import Tell
from benchmarks.gpu.trainer import Run, Trainer, fast_backends, peak_bytes, settle

LANES, TINY_LANES = (16384, 65536, 4096, 1024), (8,)
SECONDS, TINY_SECONDS = 3.0, 0.05  # that each is timed for
WARM_UP = 3  # updates that are not timed

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
    """Tell steps per second, where the time goes, the most memory, and how busy the device is."""
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


def _timed(spent: dict[str, float], name: str, run: Callable[[], T], device: torch.device) -> T:
    began = perf_counter()
    result = run()
    settle(device)
    spent[name] += perf_counter() - began
    return result
