"""The lanes of a vector environment as a policy meets them: what each shows, and where its episodes begin and end.

Whether the environment resets finished lanes in the same step or in the next is settled here, and so is what a failing
environment costs. Legend: B environments.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from mneme.envs import EnvironmentFailure, adrift_in, failures_in, one_line, reset_failures_in
from mneme.rollout_workers.final_info import FinalNumbers
from mneme.rollout_workers.settings import SpaceSettings
from mneme.rollout_workers.spaces import Parts, SpaceAdapter
from mneme.rollout_workers.stopwatch import Stopwatch

_NO_LANES = np.empty(0, np.intp)


class Transition(NamedTuple):
    """The results of one step of all lanes."""

    reward_B: np.ndarray  # float64, 0 where not valid
    terminated_B: np.ndarray  # bool, false where not valid
    truncated_B: np.ndarray  # bool, false where not valid
    valid_B: np.ndarray  # bool, see `Fragment`
    cut: np.ndarray  # [n] lanes that were truncated and not terminated
    finals: Parts  # [n, ...] the true final observations of those lanes; empty where there are none
    failures: dict[int, str]  # lane -> sentence


class Lanes:
    """A vector environment, and the policy's view of it before the next step.

    Args:
        env: of same-step or next-step autoreset.
        spaces: how observations and actions pass between the two.
        masked: whether the policy reads action masks.
        worker: whose lanes they are, for what is said of failures.
        metrics: numbers of the info that ends an episode that are gathered.
    """

    observation: Parts
    """The policy's present observation of each lane, [B, ...]."""
    reset_B: np.ndarray
    """True where that observation begins an episode, bool [B]."""
    filler_B: np.ndarray
    """True where the next step belongs to no episode, bool [B]."""
    action_B: np.ndarray
    """The last action of each lane, packed, [B, ...]."""
    reward_B: np.ndarray
    """The reward for that action, float64 [B]; 0 where an episode begins."""

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        spaces: SpaceSettings,
        masked: bool,
        worker: int,
        metrics: Sequence[str] = (),
    ) -> None:
        self.env, self._worker = env, worker
        self.adapter = SpaceAdapter(env.single_observation_space, env.single_action_space, spaces, masked)
        self.next_step = env.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP
        """True if a lane that has ended an episode is reset by the step after (next-step autoreset)."""
        self.numbers = FinalNumbers(metrics, self.next_step)
        """What the environment says of the episodes that have ended."""
        self.reset_failures: list[str] = []
        """Sentences about resets that failed before one succeeded, kept until a reader clears them."""
        self._async = env if isinstance(env, AsyncVectorEnv) else None
        self._everyone = np.ones(env.num_envs, dtype=np.bool_)
        self._nobody = np.zeros(env.num_envs, dtype=np.bool_)

    def begin(self, seed: Any) -> None:
        """Begin an episode in every lane."""
        B = self.env.num_envs
        self.action_B, self.reward_B = self.adapter.no_action(B), np.zeros(B)
        self.reset_B, self.filler_B = np.ones(B, dtype=np.bool_), self._nobody
        with self._blamed("in reset"):
            observation, info = self.env.reset(seed=seed)
            self.observation = self._observed(observation, info)

    def send(self, action_B: np.ndarray, number: int, watch: Stopwatch) -> None:
        """Act in every lane: those in other processes step from now on, others once `receive` is called.

        Args:
            action_B: packed actions, [B, ...].
            number: of the step, for what is said of failures.
            watch: counts the environment's own time as "env".

        Raises:
            EnvironmentFailure: a lane cannot be reached.
        """
        self.action_B = action_B
        self._action = self.adapter.to_env(action_B)
        if self._async is not None:
            with self._blamed(f"at step {number}"), watch("env"):
                self._async.step_async(self._action)

    def receive(self, number: int, watch: Stopwatch) -> Transition:
        """The results of what was sent; what the lanes show afterwards is the next step's.

        Raises:
            EnvironmentFailure: the environment raised, or returned what does not fit its spaces.
        """
        with self._blamed(f"at step {number}"):
            with watch("env"):
                results = self.env.step(self._action) if self._async is None else self._async.step_wait()
            return self._transition(*results)

    def _transition(
        self,
        observation: Any,
        reward_B: np.ndarray,
        terminated_B: np.ndarray,
        truncated_B: np.ndarray,
        info: dict[str, Any],
    ) -> Transition:
        """Turn the environment's answer to `action_B` into a `Transition`, and update what the policy sees next."""
        failures = failures_in(info)
        valid_B = self._everyone
        if failures or self.next_step or np.count_nonzero(self.filler_B):
            valid_B = ~self.filler_B
            valid_B[list(failures)] = False
            terminated_B, truncated_B = terminated_B & valid_B, truncated_B & valid_B
            reward_B = np.where(valid_B, reward_B, 0.0)
        self.reward_B = reward_B
        cut, finals = _NO_LANES, {}
        if np.count_nonzero(truncated_B) and len(cut := np.flatnonzero(truncated_B & ~terminated_B)):
            finals = self.adapter.observe_final(observation, info, cut, self.action_B, self.reward_B)
        self.reset_B = terminated_B | truncated_B
        if self.numbers.names and np.count_nonzero(self.reset_B):
            self.numbers.add(info, self.reset_B)
        self.filler_B = self.reset_B if self.next_step else self._nobody
        if valid_B is not self._everyone:
            self.reset_B = self.reset_B | ~valid_B
        if np.count_nonzero(self.reset_B):
            self.reward_B = np.where(self.reset_B, 0.0, reward_B)
        self.observation = self._observed(observation, info)
        return Transition(reward_B, terminated_B, truncated_B, valid_B, cut, finals, failures)

    def _observed(self, observation: Any, info: dict[str, Any]) -> Parts:
        """The policy's view of what the environment has just returned."""
        self.reset_failures += reset_failures_in(info)
        if (adrift_B := adrift_in(info)) is not None:
            self.filler_B = self.filler_B | adrift_B
        return self.adapter.observe(observation, info, self.action_B, self.reward_B, self.filler_B)

    @contextmanager
    def _blamed(self, where: str) -> Iterator[None]:
        """Raise any exception in here but `KeyboardInterrupt`, even `SystemExit`, as an `EnvironmentFailure`."""
        try:
            yield
        except (KeyboardInterrupt, EnvironmentFailure):
            raise
        except BaseException as error:
            spec = getattr(self.env, "spec", None)
            name = spec.id if spec is not None else type(self.env.unwrapped).__name__
            raise EnvironmentFailure(
                f"the environment {name} failed {where} of worker {self._worker}: {one_line(error)}; "
                f"mend it, or wrap it so that it keeps to its spaces"
            ) from error
