"""The collector: steps a vectorised environment with a policy and fills one fragment at a time.

Training and evaluation both run through it, so the carry is reset at the same moments in both.

Legend: B lanes, T steps of a fragment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from mneme.controllers import ACTION_MASK, PREVIOUS_ACTION, Act, Carry, DonatedCarry, Policy
from mneme.envs import (
    EnvironmentFailure,
    MemoryVectorEnv,
    Resumable,
    adrift_in,
    facts_of,
    failures_in,
    one_line,
    reset_failures_in,
)
from mneme.envs.lane_random import lane_keys, lane_noise
from mneme.rollout_workers.draft import Draft
from mneme.rollout_workers.episodes import EpisodeCounter, EpisodeStats
from mneme.rollout_workers.fragment import Fragment
from mneme.rollout_workers.history import History
from mneme.rollout_workers.settings import SpaceSettings
from mneme.rollout_workers.spaces import PREVIOUS_REWARD, Parts, SpaceAdapter

State = dict[str, np.ndarray]

_SEEDED_BY_LANE = (MemoryVectorEnv, SyncVectorEnv, AsyncVectorEnv)  # others take one seed for all their lanes


class _Transition(NamedTuple):
    """What a step of all lanes gave."""

    reward_B: np.ndarray  # float64, 0 where not valid
    terminated_B: np.ndarray  # bool, false where not valid
    truncated_B: np.ndarray  # bool, false where not valid
    valid_B: np.ndarray  # bool, see `Fragment`
    cut: np.ndarray  # [n] lanes that were truncated and not terminated
    finals: Parts  # [n, ...] the true final observations of those lanes; empty where there are none
    failures: dict[int, str]  # lane -> sentence


@dataclass
class Collector:
    """One environment, one policy, and what lies between their steps.

    Args:
        env: a vector environment of B lanes, of same-step or next-step autoreset.
        policy: what acts; its weights may be replaced between fragments.
        length: steps in a fragment, T.
        carry_stride: a carry is stored before every step that this divides.
        seed: of the run. A lane's randomness depends on (seed, incarnation, lane) alone, not on how lanes are shared
            out over workers (where the environment seeds its lanes one by one).
        incarnation: how often this worker has been replaced, so that a replacement does not repeat the past.
        worker: this worker's number, for provenance.
        first_lane: the number of lane 0 among the lanes of all workers.
        spaces: how observations and actions pass between the two.
        success_return: an episode succeeds when its return reaches this; unset: what the environment declares.
        greedy: take the most probable action.
        warm_up: steps of the past that each fragment brings along, P.
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
    spaces: SpaceSettings = field(default_factory=SpaceSettings)
    success_return: float | None = None
    greedy: bool = False
    reset_carry_at: int | None = None
    warm_up: int = 0
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        B = self.env.num_envs
        facts = facts_of(self.env)
        if self.success_return is None and facts is not None:
            self.success_return = facts.success_return
        self._next_step = self.env.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP
        self._lanes = np.arange(self.first_lane, self.first_lane + B, dtype=np.int64)
        self._reset_failures: list[str] = []
        self._adapter = SpaceAdapter(
            self.env.single_observation_space, self.env.single_action_space, self.spaces, self.policy.spec.masked
        )
        env_keys, self._noise_keys = self._lane_keys()
        with self._blamed("in reset"):
            observation, info = self.env.reset(seed=self._env_seeds(env_keys))
        self._action_B, self._reward_B = self._adapter.no_action(B), np.zeros(B)
        self._reset = np.ones(B, dtype=np.bool_)
        self._everyone, self._nobody = np.ones(B, dtype=np.bool_), np.zeros(B, dtype=np.bool_)
        self._filler = self._nobody  # lanes whose next step belongs to no episode
        with self._blamed("in reset"):
            self._observation = self._observed(observation, info)
        with torch.no_grad():
            self._carry: Carry = self.policy.initial_carry(B)
        self._episodes = EpisodeCounter(B)
        self._history = History(self.warm_up, self.length, self._observation, self._carry) if self.warm_up else None

    def _env_seeds(self, key_B: np.ndarray) -> Any:
        """One seed a lane, as large as the environment surely takes; or one for all where it takes no more."""
        env = self.env.unwrapped
        shift = np.uint64(1 if isinstance(env, MemoryVectorEnv) else 33)
        seeds = (key_B >> shift).tolist()
        return seeds if isinstance(env, _SEEDED_BY_LANE) else seeds[0]

    def _lane_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the environments' randomness and of the action noise, each uint64 [B]."""
        env_seed, noise_seed = np.random.SeedSequence([self.seed, self.incarnation]).generate_state(2)
        return lane_keys(int(env_seed), self._lanes), lane_keys(int(noise_seed), self._lanes)

    @torch.no_grad()
    def collect(self, weights_version: int = 0) -> tuple[Fragment, EpisodeStats]:
        """Step every lane T times; the fragment shares no memory with this collector or with other fragments.

        Raises:
            EnvironmentFailure: the environment raised, or returned what does not fit its spaces.
        """
        T = self.length
        draft, past = self._draft(weights_version), self._history.past() if self._history else None
        fragment = draft.fragment
        noise = lane_noise(self._noise_keys, self._step, T, self.policy.action_distribution.noise_size).astype(
            np.float32
        )
        noise_TBN = torch.from_numpy(noise.swapaxes(0, 1))
        failures: list[str] = []
        inference = stepping = 0.0
        started = perf_counter()

        for t in range(T):
            draft.state(t, self._observation, self._reset, self._carry)
            if self._history and t == self._history.due:
                self._history.keep(self._carry)
            before = perf_counter()
            act = self._act(noise_TBN[t])
            inference += perf_counter() - before
            self._carry = act.carry
            fragment.actions[:, t] = self._action_B = act.action_B.numpy()
            fragment.log_probs[:, t] = act.log_prob_B.numpy()
            fragment.values[:, t] = act.value_B.numpy()
            action = self._adapter.to_env(self._action_B)
            before = perf_counter()
            with self._blamed(f"at step {self._step + t}"):
                results = self.env.step(action)
                stepping += perf_counter() - before
                step = self._transition(*results)
            if len(step.cut):
                draft.finals(t, step.cut, step.finals, self._values_of(step.cut, step.finals))
            fragment.rewards[:, t] = step.reward_B
            fragment.terminated[:, t], fragment.truncated[:, t] = step.terminated_B, step.truncated_B
            fragment.valid[:, t] = step.valid_B
            failures += step.failures.values()
            self._episodes.count(step.reward_B, step.terminated_B | step.truncated_B, self._reset)

        draft.state(T, self._observation, self._reset, self._carry)
        fragment.values[:, T] = self.policy.value(
            _tensors(self._observation), torch.from_numpy(self._reset), self._carry
        ).numpy()
        fragment = draft.finished(past)
        if self._history:
            self._history.extend(fragment)
        self._step += T
        recording = perf_counter() - started - inference - stepping
        seconds = {"env": stepping, "inference": inference, "recording": recording}
        stats = self._episodes.stats(self.success_return, (*failures, *self._reset_failures), seconds)
        self._reset_failures.clear()
        return fragment, stats

    def _act(self, noise_BN: torch.Tensor) -> Act:
        reset = self._reset
        if self.reset_carry_at is not None:
            reset = reset | (self._episodes.step_B == self.reset_carry_at)
        carry = DonatedCarry(self._carry)  # what is to be kept of it has been recorded
        return self.policy.act(
            _tensors(self._observation), torch.from_numpy(reset), carry, noise_BN, greedy=self.greedy
        )

    def _transition(
        self,
        observation: Any,
        reward_B: np.ndarray,
        terminated_B: np.ndarray,
        truncated_B: np.ndarray,
        info: dict[str, Any],
    ) -> _Transition:
        """What the environment answered to `_action_B`; afterwards `_observation`, `_reset` and `_filler` are the next
        step's."""
        failures = failures_in(info)
        valid_B = self._everyone
        if failures or self._next_step or self._filler.any():
            valid_B = ~self._filler
            valid_B[list(failures)] = False
            terminated_B, truncated_B = terminated_B & valid_B, truncated_B & valid_B
            reward_B = np.where(valid_B, reward_B, 0.0)
        self._reward_B = reward_B
        cut, finals = _NO_LANES, {}
        if truncated_B.any() and len(cut := np.flatnonzero(truncated_B & ~terminated_B)):
            finals = self._adapter.observe_final(observation, info, cut, self._action_B, self._reward_B)
        self._reset = terminated_B | truncated_B
        self._filler = self._reset if self._next_step else self._nobody
        if valid_B is not self._everyone:
            self._reset = self._reset | ~valid_B
        if self._reset.any():
            self._reward_B = np.where(self._reset, 0.0, reward_B)
        self._observation = self._observed(observation, info)
        return _Transition(reward_B, terminated_B, truncated_B, valid_B, cut, finals, failures)

    def _observed(self, observation: Any, info: dict[str, Any]) -> Parts:
        """The policy's view of what the environment has just returned."""
        self._reset_failures += reset_failures_in(info)
        if (adrift_B := adrift_in(info)) is not None:
            self._filler = self._filler | adrift_B
        parts = self._adapter.observe(observation, info, self._action_B, self._reward_B)
        if self._adapter.spec.masked:
            self._adapter.check_mask(parts[ACTION_MASK], self._filler)
        return parts

    def _values_of(self, lanes: np.ndarray, finals: Parts) -> np.ndarray:
        """Values of the true final observations of truncated lanes, read with the carry those lanes had then."""
        carry = {name: c[lanes] for name, c in self._carry.items()}
        return self.policy.value(_tensors(finals), torch.zeros(len(lanes), dtype=torch.bool), carry).numpy()

    @contextmanager
    def _blamed(self, where: str) -> Iterator[None]:
        """What goes wrong in here is the environment's failure, that it leaves the program included."""
        try:
            yield
        except (KeyboardInterrupt, EnvironmentFailure):
            raise
        except BaseException as error:
            spec = getattr(self.env, "spec", None)
            name = spec.id if spec is not None else type(self.env.unwrapped).__name__
            raise EnvironmentFailure(
                f"the environment {name} failed {where} of worker {self.worker}: {one_line(error)}; "
                f"mend it, or wrap it so that it keeps to its spaces"
            ) from error

    def _draft(self, weights_version: int) -> Draft:
        """Room for this collector's next T steps."""
        B = self.env.num_envs
        return Draft(
            self._observation, self._action_B, self._carry, self.length, self.carry_stride,
            weights_version=np.full(B, weights_version), worker=np.full(B, self.worker), lane=self._lanes.copy(),
            first_step=np.full(B, self._step), seed=self._noise_keys.copy(),
        )  # fmt: skip

    def state(self) -> State | None:
        """Everything that the next fragment depends on besides the weights, or None where the environment's own state
        cannot be read (it is not `Resumable`)."""
        if not isinstance(self.env.unwrapped, Resumable):
            return None
        own = {name: getattr(self, f"_{name}") for name in _STATE}
        own |= {"return": self._episodes.return_B, "episode_step": self._episodes.step_B}
        own |= {"step": np.array(self._step), "incarnation": np.array(self.incarnation)}
        observation = {f"observation.{name}": part for name, part in self._observation.items()}
        carry = {f"carry.{name}": c.numpy() for name, c in self._carry.items()}
        env = {f"env.{name}": array for name, array in self.env.unwrapped.get_state().items()}
        past = self._history.state() if self._history else {}
        return {name: np.array(array) for name, array in (own | observation | carry | past | env).items()}

    def expected_state(self) -> State | None:
        """Arrays of the names, types and shapes that `state` gives, but for those of an environment of one's own
        (`env.`): only it knows what they must be."""
        state = self.state()
        if state is None or self._knows_env():
            return state
        return {name: array for name, array in state.items() if not name.startswith("env.")}

    def _knows_env(self) -> bool:
        return getattr(type(self.env.unwrapped), "get_state", None) is MemoryVectorEnv.get_state

    def check_state(self, state: State) -> None:
        """See that the parts of a state agree, as far as the environment lets us know; it is in that state afterwards.
        Names, types and shapes are taken to be right.

        Raises:
            ValueError: they do not.
        """
        if (state["filler"] > (state["reset"] & self._next_step)).any():
            raise ValueError("filler marks lanes that no reset is due in")
        env = self.env.unwrapped
        if not isinstance(env, MemoryVectorEnv) or not self._knows_env():
            return
        if (state["env.key"] != env.get_state()["key"]).any():
            raise ValueError("env.key is not that of the run's seed and the worker's lanes")
        env.set_state({name.removeprefix("env."): a for name, a in state.items() if name.startswith("env.")})
        if self.env is not self.env.unwrapped or type(env).step is not MemoryVectorEnv.step:
            return  # what it shows, and where its episodes begin, may be changed on the way
        if (state["env.step"] != state["episode_step"]).any() or ((state["episode_step"] == 0) != state["reset"]).any():
            raise ValueError("env.step, episode_step and reset do not agree about where episodes begin")
        shown = self._adapter.observe(env.observation(), {}, self._action_B, self._reward_B)
        for name in shown.keys() - {PREVIOUS_ACTION, PREVIOUS_REWARD}:
            if not np.array_equal(shown[name], state[f"observation.{name}"]):
                raise ValueError(f"observation.{name} is not what the environment shows in its state")

    def set_state(self, state: State) -> None:
        """Continue exactly where `state()` was taken."""
        self.incarnation, self._step = int(state["incarnation"]), int(state["step"])
        _, self._noise_keys = self._lane_keys()
        for name in _STATE:
            setattr(self, f"_{name}", state[name].copy())
        self._episodes.step = self._step
        self._episodes.return_B, self._episodes.step_B = state["return"].copy(), state["episode_step"].copy()
        self._observation = {name: state[f"observation.{name}"].copy() for name in self._observation}
        self._carry = {name: torch.from_numpy(state[f"carry.{name}"].copy()) for name in self._carry}
        if self._history:
            self._history.set_state(state)
        assert isinstance(self.env.unwrapped, Resumable)
        self.env.unwrapped.set_state(
            {name.removeprefix("env."): array for name, array in state.items() if name.startswith("env.")}
        )


_NO_LANES = np.empty(0, np.intp)
_STATE = ("reset", "filler")  # attributes that a state holds


def _tensors(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in parts.items()}
