"""Evaluation: complete episodes through the training collector, and what may be concluded from them."""

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from controllers import Policy
from envs import facts_of
from rollout_workers.collector import Collector
from rollout_workers.settings import SpaceSettings

_DEFAULT_CHUNK = 128  # steps between looks at the finished episodes, where the task's length is not fixed
_LONGEST_CHUNK = 1024  # steps held in memory at once


class Evaluation(NamedTuple):
    """Returns, lengths and successes of n complete episodes."""

    returns: np.ndarray  # [n] float64
    lengths: np.ndarray  # [n] int64
    successes: np.ndarray  # [n] bool; empty where the environment declares no success

    @property
    def episodes(self) -> int:
        """Number of episodes, n."""
        return len(self.returns)

    @property
    def mean_return(self) -> float:
        """Mean episode return."""
        return float(self.returns.mean())

    @property
    def return_interval(self) -> tuple[float, float]:
        """95 % normal-approximation interval of the mean return."""
        half = 1.96 * float(self.returns.std(ddof=1)) / math.sqrt(self.episodes) if self.episodes > 1 else math.inf
        return self.mean_return - half, self.mean_return + half

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
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion; sound at 0 and at 1, unlike the normal approximation."""
    p, zz = successes / trials, z * z
    centre = (p + zz / (2 * trials)) / (1 + zz / trials)
    half = z / (1 + zz / trials) * math.sqrt(p * (1 - p) / trials + zz / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


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
    max_episode_steps: int = 100_000,
) -> Evaluation:
    """Run at least `episodes` complete episodes, the same number on every lane (so that short ones are not favoured).

    Raises:
        ValueError: a lane ran `max_episode_steps` steps for each episode asked of it without finishing them.
    """
    per_lane = -(-episodes // env.num_envs)
    facts = facts_of(env)
    length = min((facts.episode_length if facts else None) or _DEFAULT_CHUNK, _LONGEST_CHUNK)
    collector = Collector(
        env, policy, length, carry_stride=length, seed=seed, first_lane=first_lane, greedy=greedy,
        reset_carry_at=reset_carry_at, spaces=spaces or SpaceSettings(), success_return=success_return,
    )  # fmt: skip
    finished = np.zeros(env.num_envs, dtype=np.int64)
    parts: list[Evaluation] = []
    steps = 0
    while finished.min() < per_lane:
        if steps > max_episode_steps * per_lane:
            raise ValueError(
                f"the environment did not finish {per_lane} episodes a lane in {steps} steps; "
                f"limit its episodes with env.max_episode_steps"
            )
        _, stats = collector.collect()
        steps += length
        counted = np.zeros(len(stats.lanes), dtype=np.bool_)
        for i, lane in enumerate(stats.lanes):
            counted[i] = finished[lane] < per_lane
            finished[lane] += 1
        successes = stats.successes[counted] if len(stats.successes) else stats.successes
        parts.append(Evaluation(stats.returns[counted], stats.lengths[counted], successes))
    return Evaluation.joined(parts)
