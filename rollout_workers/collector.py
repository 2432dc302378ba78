"""The collector: steps a vectorised environment with a policy and fills one fragment at a time.

Training and evaluation both run through it, so the carry is reset at the same moments in both.

Legend: B lanes, T steps of a fragment, S stored carries.
"""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from controllers import Carry, Policy
from envs import facts_of
from envs.lane_random import lane_keys, lane_noise
from rollout_workers.fragment import Fragment

State = dict[str, np.ndarray]


class EnvironmentFailure(RuntimeError):
    """An environment raised, or returned what does not fit its spaces; the message names it and the step."""


class EpisodeStats(NamedTuple):
    """The episodes that ended while one fragment was collected, E of them, and where the time went."""

    lanes: np.ndarray  # [E] int64, which lane, counted within the worker
    returns: np.ndarray  # [E] float64
    lengths: np.ndarray  # [E] int64
    successes: np.ndarray  # [E] bool; empty where the environment declares no success
    seconds: dict[str, float]  # "env" and "inference", wall clock


def _name(env: gym.vector.VectorEnv[Any, Any, Any]) -> str:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(env.unwrapped).__name__


@dataclass
class Collector:
    """One environment, one policy, and what lies between their steps.

    Args:
        env: a same-step-autoreset vector environment of B lanes.
        policy: what acts; its weights may be replaced between fragments.
        length: steps in a fragment, T.
        carry_stride: a carry is stored before every step that this divides.
        seed: of the run. A lane's randomness depends on (seed, incarnation, lane) alone, not on how lanes are shared
            out over workers.
        incarnation: how often this worker has been replaced, so that a replacement does not repeat the past.
        worker: this worker's number, for provenance.
        first_lane: the number of lane 0 among the lanes of all workers.
        greedy: take the most probable action.
        reset_carry_at: replace the carry by the initial one at this step of every episode (an ablation: an agent that
            needs its memory fails). The fragment's reset flags do not show it, so never train on such fragments.
    """

    env: gym.vector.VectorEnv[Any, Any, Any]
    policy: Policy
    length: int
    carry_stride: int
    seed: int
    incarnation: int = 0
    worker: int = 0
    first_lane: int = 0
    greedy: bool = False
    reset_carry_at: int | None = None
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        B = self.env.num_envs
        facts = facts_of(self.env)
        self._success_return = None if facts is None else facts.success_return
        self._lanes = np.arange(self.first_lane, self.first_lane + B, dtype=np.int64)
        env_keys, self._noise_keys = self._lane_keys()
        lane_seeds: Any = [int(key >> np.uint64(1)) for key in env_keys]
        self._observation, _ = self.env.reset(seed=lane_seeds)
        self._reset = np.ones(B, dtype=np.bool_)
        with torch.no_grad():
            self._carry: Carry = self.policy.initial_carry(B)
        self._return = np.zeros(B)
        self._episode_step = np.zeros(B, dtype=np.int64)

    def _lane_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the environments' randomness and of the action noise, each uint64 [B]."""
        env_seed, noise_seed = np.random.SeedSequence([self.seed, self.incarnation]).generate_state(2)
        return lane_keys(int(env_seed), self._lanes), lane_keys(int(noise_seed), self._lanes)

    @torch.no_grad()
    def collect(self, weights_version: int = 0) -> tuple[Fragment, EpisodeStats]:
        """Step every lane T times; the fragment shares no memory with this collector or with other fragments."""
        B, T, policy = self.env.num_envs, self.length, self.policy
        stored = -(-T // self.carry_stride)
        observations = np.empty((B, T + 1, *self._observation.shape[1:]), dtype=self._observation.dtype)
        actions = np.empty((B, T), dtype=np.int64)
        log_probs, final_values, rewards = (
            np.empty((B, T), np.float32),
            np.zeros((B, T), np.float32),
            np.empty((B, T), np.float32),
        )
        values = np.empty((B, T + 1), np.float32)
        terminated, truncated = np.empty((B, T), np.bool_), np.empty((B, T), np.bool_)
        resets = np.empty((B, T + 1), np.bool_)
        carries = {
            name: np.empty((B, stored, *c.shape[1:]), torch.empty(0, dtype=c.dtype).numpy().dtype)
            for name, c in self._carry.items()
        }
        noise_TB = torch.from_numpy(lane_noise(self._noise_keys, self._step, T).T.astype(np.float32))
        ended: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        inference = 0.0
        started = perf_counter()

        observations[:, 0] = self._observation
        for t in range(T):
            resets[:, t] = self._reset
            if t % self.carry_stride == 0:
                for name, c in self._carry.items():
                    carries[name][:, t // self.carry_stride] = c.numpy()
            before = perf_counter()
            act = policy.act(
                torch.from_numpy(self._observation),
                self._policy_reset(),
                self._carry,
                noise_TB[t],
                greedy=self.greedy,
            )
            action = act.action_B.numpy()
            inference += perf_counter() - before
            self._carry = act.carry
            actions[:, t] = action
            log_probs[:, t] = act.log_prob_B.numpy()
            values[:, t] = act.value_B.numpy()

            try:
                self._observation, reward, terminated_B, truncated_B, info = self.env.step(action)
                observations[:, t + 1], rewards[:, t] = self._observation, reward
                terminated[:, t], truncated[:, t] = terminated_B, truncated_B
            except Exception as error:
                raise EnvironmentFailure(
                    f"the environment {_name(self.env)} failed at step {self._step + t} of worker {self.worker}: "
                    f"{type(error).__name__}: {error}; mend it, or wrap it so that it keeps to its spaces"
                ) from error
            self._reset = terminated_B | truncated_B
            self._return += reward
            self._episode_step += 1
            if truncated_B.any():
                lanes = np.flatnonzero(truncated_B & ~terminated_B)
                final_values[lanes, t] = self._final_values(lanes, info["final_obs"])
            if self._reset.any():
                lanes = np.flatnonzero(self._reset)
                ended.append((lanes, self._return[lanes], self._episode_step[lanes]))
                self._return[lanes] = 0.0
                self._episode_step[lanes] = 0

        resets[:, T] = self._reset
        values[:, T] = policy.value(
            torch.from_numpy(self._observation), torch.from_numpy(self._reset), self._carry
        ).numpy()
        first_step, self._step = self._step, self._step + T
        fragment = Fragment(
            observations=observations, actions=actions, log_probs=log_probs, values=values, final_values=final_values,
            rewards=rewards, terminated=terminated, truncated=truncated, resets=resets, carries=carries,
            carry_stride=self.carry_stride, weights_version=np.full(B, weights_version), worker=np.full(B, self.worker),
            lane=self._lanes.copy(), first_step=np.full(B, first_step), seed=self._noise_keys.copy(),
        )  # fmt: skip
        seconds = {"env": perf_counter() - started - inference, "inference": inference}
        return fragment, self._episode_stats(ended, seconds)

    def _policy_reset(self) -> torch.Tensor:
        if self.reset_carry_at is None:
            return torch.from_numpy(self._reset)
        return torch.from_numpy(self._reset | (self._episode_step == self.reset_carry_at))

    def _final_values(self, lanes: np.ndarray, final_observations: np.ndarray) -> np.ndarray:
        """Values of the true final observations of truncated lanes, read with the carry those lanes had then."""
        final = np.stack([final_observations[lane] for lane in lanes]) if len(lanes) else self._observation[:0]
        carry = {name: c[lanes] for name, c in self._carry.items()}
        value = self.policy.value(torch.from_numpy(final), torch.zeros(len(lanes), dtype=torch.bool), carry)
        return value.numpy()

    def _episode_stats(
        self, ended: list[tuple[np.ndarray, np.ndarray, np.ndarray]], seconds: dict[str, float]
    ) -> EpisodeStats:
        empty = (np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
        lanes, returns, lengths = (np.concatenate(column) for column in zip(empty, *ended, strict=True))
        known = self._success_return is not None
        successes = returns >= self._success_return if known else np.empty(0, np.bool_)
        return EpisodeStats(lanes, returns, lengths, successes, seconds)

    def state(self) -> State | None:
        """Everything that the next fragment depends on besides the weights, or None where the environment's own state
        cannot be read (it has no `get_state`)."""
        if not hasattr(self.env.unwrapped, "get_state"):
            return None
        own = {
            "observation": self._observation,
            "reset": self._reset,
            "return": self._return,
            "episode_step": self._episode_step,
            "step": np.array(self._step),
            "incarnation": np.array(self.incarnation),
        }
        carry = {f"carry.{name}": c.numpy() for name, c in self._carry.items()}
        env = {f"env.{name}": array for name, array in self.env.unwrapped.get_state().items()}
        return {name: np.array(array) for name, array in (own | carry | env).items()}

    def set_state(self, state: State) -> None:
        """Continue exactly where `state()` was taken."""
        self.incarnation, self._step = int(state["incarnation"]), int(state["step"])
        _, self._noise_keys = self._lane_keys()
        self._observation = state["observation"].copy()
        self._reset = state["reset"].copy()
        self._return = state["return"].copy()
        self._episode_step = state["episode_step"].copy()
        self._carry = {name: torch.from_numpy(state[f"carry.{name}"].copy()) for name in self._carry}
        self.env.unwrapped.set_state(
            {name.removeprefix("env."): array for name, array in state.items() if name.startswith("env.")}
        )
