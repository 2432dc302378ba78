"""`mneme diagnose`: what a run's mode does to the gradient, measured at its newest weights, and said in words."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from mneme.agent import LoadedPolicy, load_policy
from mneme.experiments.carries import Ageing, ageing, batches_of, learner_of, turnover
from mneme.learner import LearnerSettings
from mneme.learner.fidelity import Fidelity
from mneme.reporting.curves import BLUE, GREY, picture, plain_numbers
from mneme.reporting.display import NOTHING
from mneme.storage.paths import locate
from mneme.storage.run_folder import RunFolder

_ALIKE = 0.9  # a lower cosine is worth a word
_STALE = 0.3  # so is a greater distance of stored carries, where they are used
_RECENT = 10  # updates over which what was measured in training is averaged
_SMALLER = "lower learner.learning_rate or learner.num_epochs, or set learner.target_kl"
_HEALTHY: Mapping[str, tuple[float, float, str]] = {
    "kl": (-math.inf, 0.1, f"an update changes the policy by much: {_SMALLER}"),
    "clip_fraction": (-math.inf, 0.4, f"much of a batch teaches nothing, as it is clipped: {_SMALLER}"),
    "effective_sample_size": (0.5, math.inf, f"few steps of a batch decide: {_SMALLER}"),
    "explained_variance": (
        0.0,
        math.inf,
        "values say less than their mean: check learner.gamma and the size of rewards",
    ),
    "staleness": (-math.inf, _STALE, "carries are stale: lower service.max_lag or raise rollout.warm_up"),
    "nonfinite_steps": (-math.inf, 0.0, "gradients are not finite: check the environment's numbers, lower the rate"),
}
"""Metrics of training with the least and the most that is healthy, and a word for what is not."""


class Diagnosis(NamedTuple):
    """A run's gradient beside full backpropagation's, on one batch; its carries; its last updates."""

    mode: str  # in words
    fidelity: Fidelity
    reach: np.ndarray  # [T] mean norm of the gradient of a step's loss in the carry so many steps earlier; NaN: none
    memory_horizon: int | None  # steps that the task has to be remembered over, where it says so
    bptt_length: int  # steps between cuts
    stored: bool  # whether the mode starts from stored carries
    ageing: Ageing
    turnover: Mapping[str, float]  # part of the carry -> see `turnover`
    recent: Mapping[str, float]  # metrics, means over the last updates

    def furthest(self) -> int:
        """Steps back to the earliest input that a gradient arrives at: one more than to the carry after it."""
        return 1 + int(np.flatnonzero(np.nan_to_num(self.reach) > 0).max(initial=-1))

    def lines(self) -> Iterator[str]:
        """All of it, to be read, and what to change."""
        fidelity = self.fidelity
        yield f"mode: {self.mode}"
        cosine, norm, core_cosine, core_norm = map(_shown, fidelity)
        yield f"beside full: cosine {cosine}, norm {norm} times"
        yield f"beside full, recurrent core: cosine {core_cosine}, norm {core_norm} times"
        yield "norm of d loss / d carry, by steps back:"
        for distance in distances(len(self.reach)):
            yield f"  {distance:>6,}  {_shown(self.reach[distance], '.3g')}"
        for unit, aged in (("epoch", self.ageing.by_epoch), ("lag", self.ageing.by_lag)):
            drift = ", ".join(f"{i}: {_shown(staleness.distance)}" for i, staleness in enumerate(aged, 1))
            yield f"staleness of stored carries, by {unit}: {drift}"
        parts = ", ".join(f"{name} {_shown(share)}" for name, share in self.turnover.items())
        yield f"share of the carry that a step replaces: {parts or 'there is no carry'}"
        if self.recent:
            yield f"in the last updates: {', '.join(f'{name} {value:.3g}' for name, value in self.recent.items())}"
        yield from self.words()

    def words(self) -> Iterator[str]:
        """A sentence for everything out of its range, with the remedy."""
        horizon, furthest = self.memory_horizon, self.furthest()
        if horizon and not self.turnover:
            yield f"the controller carries nothing, the task remembers {horizon}: choose another policy.controller.kind"
        elif (  # with traces the gradient goes on beyond the sequence
            self.mode != "traces" and horizon and furthest < horizon
            and min(self.bptt_length, len(self.reach)) <= horizon
        ):  # fmt: skip
            cut = self.bptt_length < len(self.reach)
            remedy = _remedy(self.bptt_length, horizon) if cut else "raise rollout.unroll_length"
            reaches = f"reaches further than {furthest} steps" if furthest else "goes back through time"
            yield f"no gradient {reaches}, the task remembers {horizon}: {remedy}"
        if self.fidelity.cosine < _ALIKE:
            yield (
                f"the gradient points elsewhere than full backpropagation's (cosine {self.fidelity.cosine:.2f}, of the "
                f"recurrent core {self.fidelity.core_cosine:.2f}): cut it less often, or learn in full mode"
            )
        last = self.ageing.by_epoch[-1].distance if self.ageing.by_epoch else 0.0
        if self.stored and last > _STALE:
            yield (
                f"after the epochs of one update stored carries are {last:.2f} of their size away from those of the "
                f"weights: set learner.carry_source=fresh, or lower learner.num_epochs or learner.learning_rate"
            )
        for name, (least, most, sentence) in _HEALTHY.items():
            value = self.recent.get(name, math.nan)
            if value < least or value > most:
                yield f"{name} is {value:.3g} of late: {sentence}"


def diagnose(path: Path, *, seed: int = 0, num_envs: int | None = None, trust: bool = False) -> Diagnosis:
    """Collect batches with a run's newest weights and look at gradients and carries; nothing of the run is changed.

    Args:
        path: a run folder, or one of its checkpoints.
        seed: of the batches.
        num_envs: parallel environments; unset: as many as the run has, 64 at most.
        trust: import what the run names, whoever wrote it.

    Raises:
        CheckpointError, ConfigError: there is no usable checkpoint.
        ValueError: an argument is out of range.
    """
    if num_envs is not None and num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
    torch.set_num_threads(1)
    loaded = load_policy(path, trust)
    blueprint, config = loaded.blueprint, loaded.blueprint.config
    count = num_envs or min(64, config.rollout.num_envs)
    with batches_of(loaded, seed, count, blueprint.carry_stride) as next_fragment:
        fragment = next_fragment(loaded.version)
    learner = learner_of(loaded, config.learner, seed)
    fidelity, reach = learner.diagnose([fragment.to_arrow()])
    present = learner.present_settings
    facts = blueprint.facts
    horizon = facts.memory_horizon if facts is not None else config.policy.controller.expected_horizon
    replaced = turnover(loaded, seed=seed)
    lags = config.service.max_lag if config.service.mode == "async" else 1
    aged = ageing(loaded, lags=max(1, lags), seed=seed, num_envs=count)  # the last, as it trains on
    return Diagnosis(
        _mode(present), fidelity, reach.cpu().numpy(), horizon, present.plan(blueprint.length).cut_every,
        present.carry_source == "stored", aged, replaced, _recent(loaded),
    )  # fmt: skip


def _recent(loaded: LoadedPolicy) -> dict[str, float]:
    """Means of what the run measured in the updates before the checkpoint; nothing if its metrics are not there."""
    folder, steps = locate(loaded.path)[0], int(loaded.learner["env_steps"])
    history = RunFolder(folder).history() if folder is not None else []
    rows = [row for row in history if "weights_version" in row and row["step"] <= steps][-_RECENT:]
    found = {name: [row[name] for row in rows if _is_number(row.get(name))] for name in _HEALTHY}
    return {name: fmean(values) for name, values in found.items() if values}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def draw_reach(diagnosis: Diagnosis, path: Path) -> None:
    """Write a picture of the reach, by distance, on a logarithmic scale.

    Raises:
        OSError: it cannot be written.
        ValueError: the file's ending names no kind of picture.
    """
    with picture(path, 7, 3.5) as figure:
        axes = figure.subplots()
        reach = np.where(diagnosis.reach > 0, diagnosis.reach, np.nan)
        axes.plot(np.arange(len(reach)), reach, color=BLUE)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        if diagnosis.memory_horizon:
            axes.axvline(diagnosis.memory_horizon, color=GREY, linestyle=":")
        axes.set(xlabel="steps back", ylabel="norm of d loss / d carry", title=f"reach, {diagnosis.mode}")


def _shown(value: float, form: str = ".3f") -> str:
    """A number, or a dash where nothing was measured."""
    return format(value, form) if math.isfinite(value) else NOTHING


def _mode(s: LearnerSettings) -> str:
    window = f" {s.bptt_length}" if s.mode == "truncated" else ""
    burn_in = f", burn-in {s.burn_in}" if s.burn_in else ""
    return s.mode if s.mode in ("full", "traces") else f"{s.mode}{window}, {s.carry_source} carries{burn_in}"


def _remedy(bptt_length: int, horizon: int) -> str:
    if bptt_length == 1:
        return "set learner.mode=truncated with learner.bptt_length above it, or learner.mode=full"
    return f"raise learner.bptt_length above {horizon}, or set learner.mode=full"


def distances(length: int) -> list[int]:
    """0 and the powers of two below a length."""
    return [0, *(2**k for k in range(math.ceil(math.log2(max(2, length)))) if 2**k < length)]
