"""A trained agent in a loop of the user's own: it acts on what an environment returns, one or a vector of them.

Legend: B environments.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from gymnasium.vector.utils.space_utils import batch_space

from mneme.configuration.config import Config
from mneme.controllers import ACTION_MASK, Carry, Policy
from mneme.controllers.compilation import compile_ahead
from mneme.distributed.blueprint import Blueprint, make_blueprint
from mneme.envs import Misfit, flat_mask, one_line
from mneme.learner import weights_in
from mneme.reporting.tracking.fetching import fetched_from_mlflow
from mneme.rollout_workers import SpaceSettings
from mneme.rollout_workers.spaces import SpaceAdapter, leaves_of
from mneme.rollout_workers.state import State
from mneme.storage.fetching import brought_home
from mneme.storage.restoring import checked_state, load_run


class LoadedPolicy(NamedTuple):
    """The policy of a checkpoint, and what it was trained on."""

    path: Path  # of the checkpoint
    blueprint: Blueprint[Config]
    policy: Policy
    version: int  # of the weights
    learner: State  # everything that the next update depends on besides its fragments


class AgentCarry(NamedTuple):
    """The memory of an agent between one step and the next."""

    memory: Carry  # the controller's own, each part [B, ...]
    action_B: np.ndarray  # what it did last, [B, ...]


class Agent:
    """A policy that acts on an environment's own observations, actions and masks. Its methods change nothing in it.

    Args:
        policy: what acts.
        observation_space, action_space: of a single environment.
        spaces: how observations and actions pass between the two.
        path: the checkpoint that it is from, if any.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        spaces: SpaceSettings | None = None,
        path: Path | None = None,
    ) -> None:
        self.policy = policy
        self.observation_space, self.action_space, self.path = observation_space, action_space, path
        self._adapter = SpaceAdapter(observation_space, action_space, spaces or SpaceSettings(), policy.spec.masked)
        self._first_leaf = next(iter(leaves_of(observation_space)), None)

    @classmethod
    def of(cls, blueprint: Blueprint[Config], policy: Policy, path: Path | None = None) -> "Agent":
        """The agent that a policy is in the run that it belongs to."""
        return cls(policy, blueprint.observation_space, blueprint.action_space, blueprint.config.spaces, path)

    def initial_carry(self, num_envs: int = 1) -> AgentCarry:
        """The carry that episodes begin with."""
        with torch.no_grad():
            return AgentCarry(self.policy.initial_carry(num_envs), self._adapter.no_action(num_envs))

    def act(
        self,
        observation: Any,
        carry: AgentCarry | None = None,
        *,
        reset: Any = None,
        info: Mapping[str, Any] | None = None,
        reward: Any = None,
        greedy: bool = True,
        rng: np.random.Generator | None = None,
        unused: Any = False,
    ) -> tuple[Any, AgentCarry]:
        """Choose the next action.

        Args:
            observation: what `reset` or `step` returned: of one environment, or a vector environment's batch.
            carry: what the last call returned; none at the beginning.
            reset: whether an episode begins with this observation, for each environment; unset: only where there is no
                carry. False needs one.
            info: where an environment says there which actions are allowed.
            reward: of the last step, which an agent reads that was trained with `spaces.previous_reward`.
            greedy: the most probable action instead of a sampled one.
            rng: draws the sampled ones; unset: one of its own, seeded by the operating system.
            unused: which environments will not use their action, as their next step only resets; they need no mask.

        Returns:
            The action as `step` takes it, and the carry for the next call.

        Raises:
            ValueError: what is given does not fit what the agent was trained on.
        """
        if isinstance(observation, tuple) and not isinstance(self.observation_space, gym.spaces.Tuple):
            raise ValueError(
                "the observation is a tuple; reset() and step() return one, of which it is the first part: "
                "session.reset(*env.reset()), session.predict(*env.step(action))"
            )
        if not isinstance(carry, AgentCarry | None):
            raise ValueError(
                f"the carry is a {type(carry).__name__}; give what the last call returned beside the action"
            )
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise ValueError(f"rng is {rng!r}; it must be a numpy.random.Generator, such as np.random.default_rng(0)")
        try:
            single = self._is_single(observation)
            if single:
                observation = self._batch_of_one(observation)
            else:
                for leaf in self._adapter.leaves:
                    leaf.of(observation)  # or what it lacks would be told without its space
            B = 1 if single else self._size_of(observation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"the observation does not fit {self.observation_space}: {one_line(error)}") from error
        begins = carry is None
        carry = self.initial_carry(B) if carry is None else carry
        if len(carry.action_B) != B:
            raise ValueError(f"the carry is of {len(carry.action_B)} environments and the observation of {B}")
        reset_B = np.full(B, begins) if reset is None else _each("reset", reset, B, "b")
        if begins and not reset_B.all():
            raise ValueError(
                f"reset is {reset!r}, and there is no carry to go on with; give what the last call returned beside the "
                f"action, or reset=True where an episode begins"
            )
        reward_B = np.where(reset_B, 0.0, self._rewards(reward, reset_B))
        unused_B = _each("unused", unused, B, "b")
        parts = self._adapter.observe(observation, _batched(info or {}, single), carry.action_B, reward_B, unused_B)
        for name, part in parts.items():
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise ValueError(f"the observation's part {name!r} holds {part[~np.isfinite(part)].flat[0]}")
        act = self.policy.act(
            {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()},
            torch.from_numpy(reset_B.copy()),
            carry.memory,
            self._noise(B, None if greedy else rng or np.random.default_rng()),
            greedy=greedy,
        )
        action_B = act.action_B.numpy()
        action = self._adapter.to_env(action_B)
        if single:
            action = next(iter(iterate(batch_space(self.action_space, 1), action)))
        return action, AgentCarry(act.carry, action_B)

    def session(self, env: Any = None, *, greedy: bool = True, seed: int | None = None) -> "Session":
        """An agent that keeps its carry by itself, from one call to the next.

        Args:
            env: the vector environment that it plays in; one single environment need not be given.
            greedy: as for `act`.
            seed: of sampled actions; unset: the operating system's.
        """
        return Session(self, env, greedy, seed)

    def _batch_of_one(self, observation: Any) -> Any:
        space = self.observation_space
        try:
            return concatenate(space, [observation], create_empty_array(space, 1))
        except (KeyError, IndexError, TypeError):
            for leaf in leaves_of(space):
                leaf.of(observation)  # says what is missing in our words
            raise

    def _is_single(self, observation: Any) -> bool:
        leaf = self._first_leaf
        return leaf is not None and leaf.of(observation).shape == (leaf.space.shape or ())

    def __reduce__(self) -> tuple[Any, ...]:
        return Agent, (self.policy, self.observation_space, self.action_space, self._adapter.settings, self.path)

    def _size_of(self, observation: Any) -> int:
        leaf = self._first_leaf
        shape = leaf.of(observation).shape if leaf is not None else ()
        if leaf is None or shape[1:] != (leaf.space.shape or ()) or not shape:
            raise Misfit(f"it has shape {list(shape)}, which is neither that of one nor that of a batch of them")
        return int(shape[0])

    def _rewards(self, reward: Any, reset_B: np.ndarray) -> np.ndarray:
        if reward is None:
            if self._adapter.settings.previous_reward and not reset_B.all():
                raise ValueError("this agent reads the reward of the last step; give it as reward=")
            return np.zeros(len(reset_B))
        reward_B = _each("reward", reward, len(reset_B), "biuf").astype(np.float64)
        if not np.isfinite(reward_B).all():
            raise ValueError(f"reward is {reward!r}; it must be finite")
        return reward_B

    def _noise(self, num_envs: int, rng: np.random.Generator | None) -> torch.Tensor:
        shape = (num_envs, self.policy.action_distribution.noise_size)
        return torch.from_numpy(np.zeros(shape, np.float32) if rng is None else rng.random(shape, np.float32))


class Session:
    """An agent that plays: it keeps its carry, its last action and where episodes end.

    `action = session.reset(*env.reset())`, and then `action = session.predict(*env.step(action))`.

    A single environment is reset by its user once an episode has ended: then there is nothing to choose, and `predict`
    returns None. A vector environment resets its own.
    """

    def __init__(self, agent: Agent, env: Any = None, greedy: bool = True, seed: int | None = None) -> None:
        if env is not None and not isinstance(env, (gym.Env, gym.vector.VectorEnv)):
            raise ValueError(f"env is {env!r}; give the vector environment that the agent plays in, or none")
        shown = getattr(env, "single_observation_space", getattr(env, "observation_space", None))
        if shown is not None and shown != agent.observation_space:
            raise ValueError(f"env shows {shown}, and the agent was trained on {agent.observation_space}")
        self._agent, self._greedy = agent, greedy
        self._mode = None if env is None else (env.metadata or {}).get("autoreset_mode")
        try:
            self._rng = np.random.default_rng(seed)
        except (TypeError, ValueError):
            raise ValueError(f"seed is {seed!r}; it must be a whole number of at least 0, or None") from None
        self._carry: AgentCarry | None = None
        self._ended: Any = False  # episodes that the last step ended, where the next step is what resets

    def reset(self, observation: Any, info: Mapping[str, Any] | None = None) -> Any:
        """Begin episodes with what `env.reset()` returned; the first action."""
        action, self._carry = self._agent.act(observation, info=info, greedy=self._greedy, rng=self._rng)
        self._ended = False
        return action

    def predict(
        self,
        observation: Any,
        reward: Any = None,
        terminated: Any = False,
        truncated: Any = False,
        info: Mapping[str, Any] | None = None,
    ) -> Any:
        """The next action, after what `env.step(action)` returned; before any `reset` it is one.

        Raises:
            ValueError: a vector environment ended an episode and its form of reset is not known.
        """
        if self._carry is None:
            return self.reset(observation, info)
        B = len(self._carry.action_B)
        flags = {"terminated": terminated, "truncated": truncated}
        ended_B = np.logical_or(*(_each(name, value, B, "b") for name, value in flags.items()))
        one = B == 1 and not any(np.ndim(value) for value in flags.values())
        ended: Any = ended_B[0] if one else ended_B
        if not one and any(np.ndim(value) == 0 and value for value in flags.values()):
            raise ValueError(f"terminated or truncated is one value; give one for each of {B} environments")
        if ended.ndim and ended.any() and self._mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(
                "an episode of a vector environment has ended, and nothing says whether it resets in the same step or "
                "in the next; give the environment: agent.session(env), one that resets by itself"
            )
        if not ended.ndim and ended:
            self._carry = None  # what comes next begins an episode
            return None
        waiting = ended if self._mode is AutoresetMode.NEXT_STEP else False
        action, self._carry = self._agent.act(
            observation, self._carry, reset=ended | self._ended, reward=reward, info=info, greedy=self._greedy,
            rng=self._rng, unused=waiting,
        )  # fmt: skip
        self._ended = waiting
        return action


def _each(name: str, value: Any, count: int, kinds: str) -> np.ndarray:
    """A value for each environment, [count], given for each or for all; its type is one of numpy's `kinds`.

    Raises:
        ValueError: it is none.
    """
    array = np.asarray(value) if np.isscalar(value) or isinstance(value, (list, np.ndarray, np.generic)) else None
    if array is None or array.dtype.kind not in kinds or array.shape not in ((), (count,)):
        kind = "true or false" if kinds == "b" else "a number"
        shape = "" if array is None or not array.ndim else f", of shape {list(array.shape)}"
        raise ValueError(f"{name} is {value!r}{shape}; it must be {kind}, or one for each of {count} environments")
    return np.broadcast_to(array, count)


def load_policy(path: Path, trust: bool = False) -> LoadedPolicy:
    """The policy of a run's newest checkpoint, or of the very one that a path, a mirror's URI or MLflow's names.

    Raises:
        CheckpointError: there is no usable checkpoint, or its weights do not fit its configuration, or it names code
            that nobody here has chosen, without `trust`.
    """
    path, checkpoint, config = load_run(brought_home(fetched_from_mlflow(path)), trust)
    blueprint = make_blueprint(config)
    policy = blueprint.policy()
    compile_ahead(policy.controller, blueprint.config.policy.controller.kind)
    state = checked_state(path, checkpoint, blueprint).learner
    weights = weights_in(state)
    weights.load_into(policy)
    return LoadedPolicy(path, blueprint, policy, weights.version, state)


def load_agent(path: Path, trust: bool = False) -> Agent:
    """The agent of a run, as its newest checkpoint has it; see `load_policy`."""
    loaded = load_policy(path, trust)
    return Agent.of(loaded.blueprint, loaded.policy, loaded.path)


def _batched(info: Mapping[str, Any], single: bool) -> Mapping[str, Any]:
    """The mask in an info, [B, N]."""
    if ACTION_MASK not in info:
        return info
    masks = [info[ACTION_MASK]] if single else info[ACTION_MASK]
    return {ACTION_MASK: np.stack([flat_mask(mask) for mask in masks])}
