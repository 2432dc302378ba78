"""`mneme diagnose`: what a run's mode does to the gradient, measured at its newest weights, and said in words."""

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mneme.agent import load_policy
from mneme.controllers import Policy
from mneme.experiments.ageing import collector_of
from mneme.learner import LearnerSettings
from mneme.learner.fidelity import Fidelity
from mneme.learner.learner import Learner
from mneme.reporting.curves import BLUE, GREY, use_style

_ALIKE = 0.9  # a lower cosine is worth a word


class Diagnosis(NamedTuple):
    """A run's gradient beside that of full backpropagation through time, on one batch."""

    mode: str  # in words
    fidelity: Fidelity
    reach: np.ndarray  # [T] mean norm of the gradient of a step's loss in the carry so many steps earlier; NaN: none
    memory_horizon: int | None  # steps that the task has to be remembered over, where it says so
    bptt_length: int  # steps between cuts

    def furthest(self) -> int:
        """Steps back to the earliest input that a gradient arrives at: one more than to the carry after it."""
        return 1 + int(np.flatnonzero(np.nan_to_num(self.reach) > 0).max(initial=-1))

    def words(self) -> Iterator[str]:
        """A sentence for everything out of its range, with the remedy."""
        horizon, furthest = self.memory_horizon, self.furthest()
        if horizon and furthest < horizon:
            cut = self.bptt_length <= horizon
            remedy = _remedy(self.bptt_length, horizon) if cut else "raise rollout.unroll_length"
            reaches = f"reaches further than {furthest} steps" if furthest else "goes back through time"
            yield f"no gradient {reaches}, the task remembers {horizon}: {remedy}"
        if self.fidelity.cosine < _ALIKE:
            yield (
                f"the gradient points elsewhere than full backpropagation's (cosine {self.fidelity.cosine:.2f}, of the "
                f"recurrent core {self.fidelity.core_cosine:.2f}): cut it less often, or learn in full mode"
            )


def diagnose(path: Path, *, seed: int = 0, num_envs: int | None = None, trust: bool = False) -> Diagnosis:
    """Collect a batch with a run's newest weights and look at its gradients; nothing is changed.

    Args:
        path: a run folder, or one of its checkpoints.
        seed: of the batch.
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
    blueprint, policy = loaded.blueprint, loaded.policy
    config = blueprint.config
    count = num_envs or min(64, config.rollout.num_envs)
    with collector_of(loaded, seed, count, blueprint.carry_stride) as collector:
        fragment, _ = collector.collect(loaded.version)
    learner = _learner(policy, config.learner, loaded.version)
    fidelity, reach = learner.diagnose([fragment.to_arrow()])
    facts, plan = blueprint.facts, config.learner.plan(blueprint.length)
    horizon = facts.memory_horizon if facts is not None else config.policy.controller.expected_horizon
    return Diagnosis(_mode(config.learner), fidelity, reach.cpu().numpy(), horizon, plan.cut_every)


def draw_reach(diagnosis: Diagnosis, path: Path) -> None:
    """Write a picture of the reach, by distance, on a logarithmic scale.

    Raises:
        OSError: it cannot be written.
        ValueError: the file's ending names no kind of picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        use_style(mpl)
        figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
        axes = figure.subplots()
        reach = np.where(diagnosis.reach > 0, diagnosis.reach, np.nan)
        axes.plot(np.arange(len(reach)), reach, color=BLUE)
        axes.set_yscale("log")
        if diagnosis.memory_horizon:
            axes.axvline(diagnosis.memory_horizon, color=GREY, linestyle=":")
        axes.set(xlabel="steps back", ylabel="norm of d loss / d carry", title=f"reach, {diagnosis.mode}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _learner(policy: Policy, settings: LearnerSettings, version: int) -> Learner:
    learner = Learner(deepcopy(policy), settings, seed=0, total_timesteps=1)
    learner.version = version
    return learner


def _mode(s: LearnerSettings) -> str:
    window = f" {s.bptt_length}" if s.mode == "truncated" else ""
    burn_in = f", burn-in {s.burn_in}" if s.burn_in else ""
    return s.mode if s.mode == "full" else f"{s.mode}{window}, {s.carry_source} carries{burn_in}"


def _remedy(bptt_length: int, horizon: int) -> str:
    if bptt_length == 1:
        return "set learner.mode=truncated with learner.bptt_length above it, or learner.mode=full"
    return f"raise learner.bptt_length above {horizon}, or set learner.mode=full"


def distances(length: int) -> list[int]:
    """0 and the powers of two below a length."""
    return [0, *(2**k for k in range(math.ceil(math.log2(max(2, length)))) if 2**k < length)]
