"""The collector: steps a vectorised environment with a policy and fills one fragment at a time.

Training and evaluation both run through it, so the carry is reset at the same moments in both.

Legend: B environments, T steps of a fragment.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from mneme.controllers import PREVIOUS_ACTION, Act, Actor, Carry, Policy
from mneme.envs import (
    MemoryVectorEnv,
    facts_of,
    resumable_form,
)
from mneme.envs.lane_random import lane_keys, lane_noise
from mneme.rollout_workers.draft import Draft
from mneme.rollout_workers.episodes import EpisodeCounter, EpisodeStats
from mneme.rollout_workers.fragment import Fragment
from mneme.rollout_workers.history import History
from mneme.rollout_workers.lanes import Lanes
from mneme.rollout_workers.settings import SpaceSettings
from mneme.rollout_workers.spaces import PREVIOUS_REWARD, Parts
from mneme.rollout_workers.state import State, under
from mneme.rollout_workers.stopwatch import Stopwatch

Collected = tuple[Fragment, EpisodeStats]

PARTS = ("env", "inference", "recording")
"""That the time of collecting is shared out among."""

_SEEDED_BY_LANE = (MemoryVectorEnv, SyncVectorEnv, AsyncVectorEnv)  # others take one seed for all their lanes


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
        metrics: numbers of the info that ends an episode that the statistics have.
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
    metrics: tuple[str, ...] = ()
    warm_up: int = 0
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        B = self.env.num_envs
        facts = facts_of(self.env)
        if self.success_return is None and facts is not None:
            self.success_return = facts.success_return
        self._numbers = np.arange(self.first_lane, self.first_lane + B, dtype=np.int64)
        env_keys, self._noise_keys = self._lane_keys()
        self._lanes = Lanes(self.env, self.spaces, self.policy.spec.masked, self.worker, self.metrics)
        self._lanes.begin(self._env_seeds(env_keys))
        with torch.no_grad():
            self._carry: Carry = self.policy.initial_carry(B)
        self._episodes = EpisodeCounter(B)
        first = self._lanes.observation
        self._history = History(self.warm_up, self.length, first, self._carry) if self.warm_up else None

    def _env_seeds(self, key_B: np.ndarray) -> Any:
        """One seed a lane, as large as the environment surely takes; or one for all where it takes no more."""
        env = self.env.unwrapped
        shift = np.uint64(1 if isinstance(env, MemoryVectorEnv) else 33)
        seeds = (key_B >> shift).tolist()
        return seeds if isinstance(env, _SEEDED_BY_LANE) else seeds[0]

    def _lane_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the environments' randomness and of the action noise, each uint64 [B]."""
        env_seed, noise_seed = np.random.SeedSequence([self.seed, self.incarnation]).generate_state(2)
        return lane_keys(int(env_seed), self._numbers), lane_keys(int(noise_seed), self._numbers)

    @torch.no_grad()
    def collect(self, weights_version: int = 0) -> Collected:
        """Step every lane T times; the fragment shares no memory with this collector or with other fragments.

        Raises:
            EnvironmentFailure: the environment raised, or returned what does not fit its spaces.
        """
        *_, collected = self.collecting(weights_version, Stopwatch(*PARTS))
        assert collected is not None
        return collected

    def collecting(self, weights_version: int, watch: Stopwatch) -> Iterator[Collected | None]:
        """`collect`, giving way T times: None whenever the lanes have been told what to do, and at last the result.

        To be called without autograd. The watch, of `PARTS`, may be shared with a collector that has its turn then.
        """
        T, lanes = self.length, self._lanes
        failures: list[str] = []
        with watch("recording"):
            draft, past = self._draft(weights_version), self._history.past() if self._history else None
            noise_TBN, actor = self._noise(T), Actor(self.policy, self.greedy)
            for t in range(T):
                draft.state(t, lanes.observation, lanes.reset_B, self._carry)
                if self._history and t == self._history.due:
                    self._history.keep(self._carry)
                with watch("inference"):
                    act = self._act(actor, noise_TBN[t])
                self._carry = act.carry
                draft.act(t, act)
                lanes.send(act.action_B.numpy(), self._step + t, watch)
                yield None
                step = lanes.receive(self._step + t, watch)
                draft.step(t, step)
                if len(step.cut):
                    draft.finals(t, step.cut, step.finals, self._values_of(actor, step.cut, step.finals))
                failures += step.failures.values()
                self._episodes.count(step.reward_B, step.terminated_B | step.truncated_B, lanes.reset_B)
            draft.state(T, lanes.observation, lanes.reset_B, self._carry)
            draft.last_value(self._value_now(actor))
            fragment = draft.finished(past)
            if self._history:
                self._history.extend(fragment)
            self._step += T
        stats = self._episodes.stats(self.success_return, (*failures, *lanes.reset_failures), watch.seconds)
        stats = stats._replace(numbers=lanes.numbers.take())
        lanes.reset_failures.clear()
        yield fragment, stats

    def _noise(self, steps: int) -> torch.Tensor:
        """The uniform noise from which the next actions are sampled, float32 [T, B, N] in [0, 1)."""
        noise = lane_noise(self._noise_keys, self._step, steps, self.policy.action_distribution.noise_size)
        return torch.from_numpy(np.ascontiguousarray(noise.swapaxes(0, 1), np.float32))

    def _act(self, actor: Actor, noise_BN: torch.Tensor) -> Act:
        reset_B = self._lanes.reset_B
        if self.reset_carry_at is not None:
            reset_B = reset_B | (self._episodes.step_B == self.reset_carry_at)
        # What is to be kept of the carry has been recorded.
        return actor.act(_tensors(self._lanes.observation), torch.from_numpy(reset_B), self._carry, noise_BN)

    def _value_now(self, actor: Actor) -> np.ndarray:
        return self._value(actor, self._lanes.observation, self._lanes.reset_B, self._carry)

    def _values_of(self, actor: Actor, lanes: np.ndarray, finals: Parts) -> np.ndarray:
        """Values of the true final observations of truncated lanes, read with the carry those lanes had then."""
        carry = {name: c[lanes] for name, c in self._carry.items()}
        return self._value(actor, finals, np.zeros(len(lanes), np.bool_), carry)

    def _value(self, actor: Actor, parts: Parts, reset_B: np.ndarray, carry: Carry) -> np.ndarray:
        kept = {name: c.clone() for name, c in self._carry.items()}  # the actor's own is good until its next call
        value_B = actor.value(_tensors(parts), torch.from_numpy(reset_B), carry).numpy()
        self._carry = kept
        return value_B

    def _draft(self, weights_version: int) -> Draft:
        """Room for this collector's next T steps."""
        B = self.env.num_envs
        return Draft(
            self._lanes.observation, self._lanes.action_B, self._carry, self.length, self.carry_stride,
            weights_version=np.full(B, weights_version), worker=np.full(B, self.worker), lane=self._numbers.copy(),
            first_step=np.full(B, self._step), seed=self._noise_keys.copy(),
        )  # fmt: skip

    def blank(self) -> Fragment:
        """A fragment of the names, types and shapes that `collect` gives; its contents have no meaning."""
        return self._draft(0).fragment

    def state(self) -> State | None:
        """Everything that the next fragment depends on besides the weights, or None where the environment's own state
        cannot be read (it is not `Resumable`)."""
        resumable = resumable_form(self.env)
        if resumable is None:
            return None
        own = {"reset": self._lanes.reset_B, "filler": self._lanes.filler_B}
        own |= {"return": self._episodes.return_B, "episode_step": self._episodes.step_B}
        own |= {"step": np.array(self._step), "incarnation": np.array(self.incarnation)}
        observation = {f"observation.{name}": part for name, part in self._lanes.observation.items()}
        carry = {f"carry.{name}": c.numpy() for name, c in self._carry.items()}
        env = {f"env.{name}": array for name, array in resumable.get_state().items()}
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
        if (state["filler"] > (state["reset"] & self._lanes.next_step)).any():
            raise ValueError("filler marks lanes that no reset is due in")
        env = self.env.unwrapped
        if not isinstance(env, MemoryVectorEnv) or not self._knows_env():
            return
        if (state["env.key"] != env.get_state()["key"]).any():
            raise ValueError("env.key is not that of the run's seed and the worker's lanes")
        env.set_state(under("env.", state))
        if self.env is not self.env.unwrapped or type(env).step is not MemoryVectorEnv.step:
            return  # what it shows, and where its episodes begin, may be changed on the way
        if (state["env.step"] != state["episode_step"]).any() or ((state["episode_step"] == 0) != state["reset"]).any():
            raise ValueError("env.step, episode_step and reset do not agree about where episodes begin")
        lanes = self._lanes
        shown = lanes.adapter.observe(env.observation(), {}, lanes.action_B, lanes.reward_B, lanes.filler_B)
        for name in shown.keys() - {PREVIOUS_ACTION, PREVIOUS_REWARD}:
            if not np.array_equal(shown[name], state[f"observation.{name}"]):
                raise ValueError(f"observation.{name} is not what the environment shows in its state")

    def set_state(self, state: State) -> None:
        """Continue exactly where `state()` was taken."""
        self.incarnation, self._step = int(state["incarnation"]), int(state["step"])
        _, self._noise_keys = self._lane_keys()
        self._lanes.reset_B, self._lanes.filler_B = state["reset"].copy(), state["filler"].copy()
        self._episodes.step = self._step
        self._episodes.return_B, self._episodes.step_B = state["return"].copy(), state["episode_step"].copy()
        self._lanes.observation = {name: state[f"observation.{name}"].copy() for name in self._lanes.observation}
        self._carry = {name: torch.from_numpy(state[f"carry.{name}"].copy()) for name in self._carry}
        if self._history:
            self._history.set_state(state)
        resumable = resumable_form(self.env)
        assert resumable is not None
        resumable.set_state(under("env.", state))


def _tensors(parts: Parts) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in parts.items()}
