"""`mneme suite modes`: modes of backpropagation beside full, on the same tasks, at the same steps, what each costs.

Every run has sequences of 256 steps, which hold several episodes, so that cuts fall anywhere in them.
"""

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from mneme.agent import load_policy
from mneme.callbacks import Progress
from mneme.configuration.config import load_config
from mneme.experiments.carries import ageing
from mneme.experiments.suite.contest import Contest, Measurement
from mneme.experiments.suite.modes_table import COLUMNS, as_markdown, draw, figures
from mneme.experiments.suite.results import Document, replace_file
from mneme.experiments.update_cost import Cost, update_costs
from mneme.learner import LearnerSettings

LENGTH, LANES, HIDDEN = 256, 64, 64
_ROUNDS = 5  # of updates that are timed
_POINTS = 100  # of a learning curve that are kept
_AGED = 32  # parallel environments in which carries are watched as they age
_WINDOWS = (16, 32, 64, 128)


def _truncated(window: int) -> Mapping[str, Sequence[str]]:
    fresh = ("learner.mode=truncated", f"learner.bptt_length={window}")
    stored = (*fresh, "learner.carry_source=stored")
    return {
        f"truncated {window}": fresh,
        f"truncated {window}, stored": stored,
        f"truncated {window}, stored, burn-in 16": (*stored, "learner.burn_in=16"),
    }


VARIANTS: Mapping[str, Sequence[str]] = {
    "full": ("learner.mode=full",),
    **{name: settings for window in _WINDOWS for name, settings in _truncated(window).items()},
    "cached": ("learner.mode=cached",),
    "cached, stored": ("learner.mode=cached", "learner.carry_source=stored"),
}
CHECKPOINTING = "full, checkpointing"
"""Learns as full does, to the last bits, so that only its cost is measured."""

TASKS: Mapping[str, Sequence[str]] = {
    "delayed_cue@16": ("env.kwargs.horizon=16",),
    "delayed_cue@64": ("env.kwargs.horizon=64",),
    "copy_memory@16": ("env.kwargs.delay=13",),  # a symbol is asked for 3 + 13 steps after it was seen
    "copy_memory@64": ("env.kwargs.delay=61",),
    "associative_recall@16": ("env.kwargs.delay=13",),  # asked for 15 steps later, up to two more or fewer
    "associative_recall@64": ("env.kwargs.delay=61",),
}
"""The presets with an answer about so many steps after what it depends on."""


class _ModeMeasurement(Measurement):
    """Keeps the learning curve, the fidelity of the gradient over training, and how stored carries aged at its end."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Mapping[str, float]]] = []

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._rows.append((progress.steps, dict(metrics)))

    def result(self) -> dict[str, Any]:
        every = max(1, len(self._rows) // _POINTS)
        curve = [(steps, row["return"]) for steps, row in self._rows[every - 1 :: every]]
        measured: dict[str, Any] = {"curve": [(s, round(x, 4)) for s, x in curve if math.isfinite(x)]}
        for name in ("cosine", "norm_ratio", "core_cosine", "core_norm_ratio"):
            values = [row[key] for _, row in self._rows if (key := f"fidelity/{name}") in row]
            finite = [value for value in values if math.isfinite(value)]
            measured[f"fidelity_{name}"] = sum(finite) / len(finite) if finite else None
        if self.path is not None:
            aged = ageing(load_policy(self.path), lags=1, seed=0, num_envs=_AGED)
            measured["staleness_by_epoch"] = [_known(staleness.distance) for staleness in aged.by_epoch]
            measured["staleness_kl_by_epoch"] = [_known(staleness.kl) for staleness in aged.by_epoch]
        return measured


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _prepare(document: Document, controllers: Sequence[str], console: Console) -> bool:
    """Measure what each mode costs with each controller, in a process of its own, as measuring slows a process down."""
    costs = document.setdefault("costs", {})
    for kind in controllers:
        if kind not in costs and sys.platform == "linux":
            with (
                console.status(f"{kind}: the cost of each mode"),
                ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart,
            ):
                try:
                    found = apart.submit(_costs, kind).result()
                except KeyboardInterrupt:
                    return False
            costs[kind] = {name: cost._asdict() for name, cost in found.items()}
            console.print(f"{kind}: measured what each mode costs")
    return True


def _costs(kind: str) -> dict[str, Cost]:
    def learner(settings: Sequence[str]) -> LearnerSettings:
        return replace(load_config(None, settings).learner, num_threads=1, num_epochs=1)

    variants = {name: learner(settings) for name, settings in VARIANTS.items()}
    variants[CHECKPOINTING] = replace(variants["full"], activation_checkpointing=True)
    return update_costs(kind, variants, length=LENGTH, lanes=LANES, hidden=HIDDEN, rounds=_ROUNDS)


def _report(document: Document, folder: Path) -> None:
    replace_file(folder / "table.md", as_markdown(document))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(figures(document))
    replace_file(folder / "table.csv", text.getvalue())
    if document["runs"]:
        draw(document, folder / "modes.png")


MODES_CONTEST = Contest(
    tasks=TASKS,
    controllers=("gru", "mamba2", "pseudo_mamba"),
    variants=VARIANTS,
    settings=(
        f"rollout.num_envs={LANES}",
        f"rollout.unroll_length={LENGTH}",
        f"policy.controller.hidden_size={HIDDEN}",
        "train.total_timesteps=300000",
        "train.stop_success=null",
        "train.evaluation_episodes=256",
        "learner.fidelity_every=4",
    ),
    own_presets=False,
    measurement=_ModeMeasurement,
    prepare=_prepare,
    report=_report,
    as_markdown=as_markdown,
)
"""Every mode, at two horizons of three tasks."""
