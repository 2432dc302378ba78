"""Evaluation: complete episodes through the training collector, and what may be concluded from them."""

import math
from time import monotonic
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from mneme.controllers import Policy
from mneme.envs import TaskFacts, facts_of
from mneme.rollout_workers.collector import Collector
from mneme.rollout_workers.digests import EpisodeDigests
from mneme.rollout_workers.recording import Recorder
from mneme.rollout_workers.settings import SpaceSettings

_DEFAULT_CHUNK = 128  # steps between looks at the finished episodes, where the task's length is not fixed
_LONGEST_CHUNK = 1024  # steps held in memory at once
_RECORDED_CHUNK = 2**28  # bytes of carries held in memory at once where those of every step are recorded

_RESAMPLES = 2000  # of the bootstrap
_RESAMPLED = 2**22  # numbers held at once by it

LONGEST_EPISODE = 100_000
"""Steps after which an episode is taken for one that never ends."""


class EvaluationError(ValueError):
    """An evaluation came to no result; the message is for the user."""


class Evaluation(NamedTuple):
    """Returns, lengths and successes of n complete episodes."""

    returns: np.ndarray  # [n] float64
    lengths: np.ndarray  # [n] int64
    successes: np.ndarray  # [n] bool; empty where nothing says what success is
    digests: np.ndarray  # [n] uint64, see `EpisodeDigests`
    facts: TaskFacts | None = None  # about the task

    def __repr__(self) -> str:
        success = "" if self.success_rate is None else f", success {self.success_rate:.1%}"
        return f"Evaluation({self.episodes} episodes, return {self.mean_return:.3f}{success})"

    @property
    def episodes(self) -> int:
        """Number of episodes, n."""
        return len(self.returns)

    @property
    def mean_return(self) -> float:
        """Mean episode return."""
        return float(self.returns.mean())

    @property
    def normalized_return(self) -> float:
        """See `TaskFacts.normalized_return`; NaN where nothing is known about the task."""
        return self.facts.normalized_return(self.mean_return) if self.facts else math.nan

    @property
    def distinct(self) -> int:
        """The number of distinct episodes: those that differ in what the environment showed or paid."""
        return len(np.unique(self.digests))

    @property
    def return_interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean return; None where all returns are equal, which says nothing about how
        far others may be."""
        return bootstrap_interval(self.returns)

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes, or None where the environment declares no success."""
        return float(self.successes.mean()) if len(self.successes) else None

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """95 % Wilson score interval of the success rate (Wilson 1927)."""
        if not len(self.successes):
            return None
        return wilson_interval(int(self.successes.sum()), len(self.successes))

    @classmethod
    def joined(cls, parts: "list[Evaluation]") -> "Evaluation":
        """The episodes of several evaluations as one."""
        return cls(
            np.concatenate([part.returns for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.successes for part in parts]),
            np.concatenate([part.digests for part in parts]),
            parts[0].facts,
        )


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion; sound at 0 and at 1, unlike the normal approximation."""
    p, zz = successes / trials, z * z
    centre = (p + zz / (2 * trials)) / (1 + zz / trials)
    half = z / (1 + zz / trials) * math.sqrt(p * (1 - p) / trials + zz / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % percentile interval of the mean of `values` [n] (Efron 1979), the same at every call; None where all are
    equal, as resampling them shows no spread."""
    if not len(values) or (values == values[0]).all():
        return None
    generator = np.random.default_rng(0)
    rows = max(1, min(_RESAMPLES, _RESAMPLED // len(values)))
    means = [
        generator.choice(values, (min(rows, _RESAMPLES - done), len(values))).mean(axis=1)
        for done in range(0, _RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def check_progress(steps: int, episodes: int, longest: int = LONGEST_EPISODE) -> None:
    """Give up on a lane that has run `longest` steps for each of its `episodes` so far, the present one included.

    Raises:
        EvaluationError: it has.
    """
    if steps > longest * episodes:
        raise EvaluationError(
            f"the environment did not finish {episodes} episode{'s' * (episodes > 1)} of a lane in {steps:,} steps; "
            f"limit its episodes with env.max_episode_steps"
        )


def evaluate(
    env: gym.vector.VectorEnv[Any, Any, Any],
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    first_lane: int = 0,
    greedy: bool = True,
    reset_carry_at: int | None = None,
    spaces: SpaceSettings | None = None,
    success_return: float | None = None,
    max_episode_steps: int = LONGEST_EPISODE,
    timeout: float = math.inf,
    weights_version: int = 0,
    recorder: Recorder | None = None,
) -> Evaluation:
    """Run at least `episodes` complete episodes, the same number on every lane (so that short ones are not favoured).

    A `recorder` is given the episodes that count; it changes nothing about them.

    Args:
        max_episode_steps: steps after which an episode is taken for one that never ends.
        timeout: seconds that all of them may take.

    Raises:
        EvaluationError: an episode did not end, or time was up.
        ValueError: the recorder holds too much.
    """
    deadline = monotonic() + timeout
    per_lane = -(-episodes // env.num_envs)
    facts = facts_of(env)
    declared = facts.episode_length if facts else None
    length = min(declared or _DEFAULT_CHUNK, _LONGEST_CHUNK, max_episode_steps + 1)
    carry_stride = length
    if recorder is not None:
        initial = {name: c[0].detach().numpy() for name, c in policy.initial_carry(1).items()}
        carry_bytes = env.num_envs * sum(carry.nbytes for carry in initial.values())
        length, carry_stride = max(1, min(length, _RECORDED_CHUNK // max(1, carry_bytes))), 1
    collector = Collector(
        env, policy, length, carry_stride=carry_stride, seed=seed, first_lane=first_lane, greedy=greedy,
        reset_carry_at=reset_carry_at, spaces=spaces or SpaceSettings(), success_return=success_return,
    )  # fmt: skip
    digests = EpisodeDigests(env.num_envs)
    finished = np.zeros(env.num_envs, dtype=np.int64)
    parts: list[Evaluation] = []
    steps = 0
    while finished.min() < per_lane:
        check_progress(steps, int(finished.min()) + 1, max_episode_steps)
        if monotonic() > deadline:
            raise EvaluationError(
                f"{int(np.minimum(finished, per_lane).sum())} of {per_lane * env.num_envs} episodes were finished "
                f"after {timeout:g} seconds; ask for fewer, or allow more time"
            )
        fragment, stats = collector.collect(weights_version)
        if recorder is not None:
            recorder.add(fragment, np.maximum(0, per_lane - finished), initial)
        steps += length
        seen = digests.add(fragment)
        counted = np.zeros(len(stats.lanes), dtype=np.bool_)
        for i, lane in enumerate(stats.lanes):
            counted[i] = finished[lane] < per_lane
            finished[lane] += 1
        successes = stats.successes[counted] if len(stats.successes) else stats.successes
        parts.append(Evaluation(stats.returns[counted], stats.lengths[counted], successes, seen[counted], facts))
    return Evaluation.joined(parts)
