"""Between an environment's spaces and the policy: observations to named parts, packed actions to what `step` takes.

Legend: B environments, N slots of a packed action.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from mneme.controllers import ACTION_MASK, PREVIOUS_ACTION, ActionDistribution, Joint, PolicySpec, Vector
from mneme.envs import EnvironmentFailure, one_line
from mneme.rollout_workers.settings import SpaceSettings
from mneme.rollout_workers.spaces.actions import acted_leaf
from mneme.rollout_workers.spaces.leaves import Leaf, leaves_of, nested, size_of
from mneme.rollout_workers.spaces.observations import PREVIOUS_REWARD, observed_leaves

Parts = dict[str, np.ndarray]


class SpaceAdapter:
    """The `spec` that a policy must fit, and the translation of observations to it and of its actions to the
    environment.

    Args:
        observation_space, action_space: of a single environment.
        settings: which parts of the spaces are used, and how.
        masked: whether the environment says which actions are allowed, in `info["action_mask"]` or as the part
            "action_mask" of a Dict observation: an array [B, mask_size], non-zero where allowed.

    Raises:
        ValueError: a space, or a choice in the settings, that no policy here can handle.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        settings: SpaceSettings,
        masked: bool,
    ) -> None:
        self.settings = settings
        self._space = observation_space
        leaves = list(leaves_of(self._space))
        self._mask_leaves = [leaf for leaf in leaves if leaf.path[:1] == (ACTION_MASK,)]
        self._observed = observed_leaves([leaf for leaf in leaves if leaf not in self._mask_leaves], settings)
        self.described = tuple(map(str, self._observed))
        """A description of how each part of the observation is read."""
        read = {observed.leaf.name: observed.reading for observed in self._observed if observed.reading is not None}
        self.settings = replace(
            settings,
            layout=settings.layout | {name: reading.layout for name, reading in read.items()},
            scale=settings.scale | {name: reading.scale for name, reading in read.items()},
        )
        """The settings given, completed with how images are read."""
        self._action_space = action_space
        self._acted = [acted_leaf(leaf, settings.squash) for leaf in leaves_of(self._action_space)]
        if not self._acted:
            raise ValueError(
                f"the action space {self._action_space} has no parts, so there is nothing for a policy to choose; "
                f"give it some, if only a Discrete(1)"
            )
        if settings.squash and not any(isinstance(leaf.space, spaces.Box) for leaf in leaves_of(self._action_space)):
            raise ValueError(
                f"spaces.squash is set, but the action space {self._action_space} has no Box; leave it unset"
            )
        ends = np.cumsum([size_of(acted.distribution.action_shape) for acted in self._acted]).tolist()
        self._slots = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        distributions = [distribution for acted in self._acted for distribution in _independent(acted.distribution)]
        self._joint = self._acted[0].distribution if len(self._acted) == 1 else Joint(tuple(distributions))
        observations = {observed.leaf.name: observed.part for observed in self._observed}
        if settings.previous_reward:
            observations[PREVIOUS_REWARD] = Vector(1)
        self.spec = PolicySpec(
            observations=observations,
            actions=self._joint,
            masked=masked or bool(self._mask_leaves),
            previous_action=settings.previous_action,
            stack=settings.stack,
        )

    @property
    def leaves(self) -> list[Leaf]:
        """The parts of an observation that are looked at."""
        return [*(observed.leaf for observed in self._observed), *self._mask_leaves]

    def observe(
        self, observation: Any, info: Mapping[str, Any], action_B: np.ndarray, reward_B: np.ndarray, free_B: np.ndarray
    ) -> Parts:
        """The policy's view [B, ...] of a batched observation, and of the action [B, ...] and reward [B] before it.

        In the lanes `free_B` the next step belongs to no episode: their masks may be missing or leave an action nothing
        to choose, which is then free.

        Raises:
            ValueError: a part does not fit its space, or a mask is missing, does not fit or leaves nothing to choose.
        """
        parts = self._parts(observation, action_B, reward_B)
        if self.spec.masked:
            parts[ACTION_MASK] = mask_BN = self._mask(observation, info, free_B)
            self._check_mask(mask_BN, free_B)
        return parts

    def observe_final(
        self, observation: Any, info: Mapping[str, Any], lanes: np.ndarray, action_B: np.ndarray, reward_B: np.ndarray
    ) -> Parts:
        """The policy's view [n, ...] of the true final observations of `lanes` [n], with every action allowed.

        They are in `info["final_obs"]` (same-step autoreset), or else `observation` itself holds them (next-step).
        """
        final = info.get("final_obs", observation)
        if isinstance(final, np.ndarray) and final.dtype == object:
            chosen = [final[lane] for lane in lanes]
            final = concatenate(self._space, chosen, create_empty_array(self._space, len(lanes)))
            parts = self._parts(final, action_B[lanes], reward_B[lanes])
        else:
            parts = {name: part[lanes] for name, part in self._parts(final, action_B, reward_B).items()}
        if self.spec.masked:
            parts[ACTION_MASK] = self._free_mask(len(lanes))
        return parts

    def _parts(self, observation: Any, action_B: np.ndarray, reward_B: np.ndarray) -> Parts:
        parts = {}
        for observed in self._observed:
            part = observed.convert(observed.leaf.of(observation))
            if part.shape != (len(reward_B), *observed.part.shape):
                raise ValueError(
                    f"{observed.leaf.named('observation')} was given as {part.shape}; "
                    f"it must be {(len(reward_B), *observed.part.shape)}"
                )
            parts[observed.leaf.name] = part
        if self.settings.previous_reward:
            parts[PREVIOUS_REWARD] = reward_B[:, None].astype(np.float32)
        if self.settings.previous_action:
            parts[PREVIOUS_ACTION] = action_B
        return parts

    def no_action(self, num_envs: int) -> np.ndarray:
        """The packed action of all zeros, [num_envs, ...]."""
        return torch.zeros(num_envs, *self._joint.action_shape, dtype=self._joint.action_dtype).numpy()

    def to_env(self, action_B: np.ndarray) -> Any:
        """Packed actions [B, *action_shape] as the environment's `step` takes them."""
        slots_BN = action_B.reshape(len(action_B), -1)
        arrays = (acted.convert(slots_BN[:, slots]) for acted, slots in zip(self._acted, self._slots, strict=True))
        return nested(self._action_space, arrays)

    def _mask(self, observation: Any, info: Mapping[str, Any], free_B: np.ndarray) -> np.ndarray:
        num_envs, size = len(free_B), self._joint.mask_size
        if self._mask_leaves:
            masks = [leaf.of(observation).reshape(num_envs, -1) for leaf in self._mask_leaves]
        elif ACTION_MASK in info:
            masks = [np.asarray(info[ACTION_MASK])]
        elif free_B.all():
            return self._free_mask(num_envs)
        else:
            raise ValueError(f"info holds no {ACTION_MASK!r}, although it did before; give one with every observation")
        mask_BN = np.concatenate(masks, axis=1)
        if mask_BN.shape != (num_envs, size) or mask_BN.dtype.kind not in "buif":
            raise ValueError(
                f"the action mask has shape {mask_BN.shape} and type {mask_BN.dtype}; "
                f"it must hold one number or boolean for each of {size} actions, shape {(num_envs, size)}"
            )
        return mask_BN.astype(np.bool_)

    def _check_mask(self, mask_BN: np.ndarray, free_B: np.ndarray) -> None:
        start = 0
        for distribution in _independent(self._joint):
            part_BM = mask_BN[:, start : start + distribution.mask_size]
            start += distribution.mask_size
            empty_B = ~part_BM.any(axis=1)
            if not distribution.mask_size or not empty_B.any():
                continue
            part_BM[empty_B & free_B] = True
            if (empty_B & ~free_B).any():
                raise ValueError(
                    f"the action mask of lane {np.flatnonzero(empty_B & ~free_B)[0]} allows none of "
                    f"{distribution.mask_size} actions; an environment must leave at least one, or end the episode"
                )

    def _free_mask(self, num_envs: int) -> np.ndarray:
        return np.ones((num_envs, self._joint.mask_size), dtype=np.bool_)


def policy_spec(env: gym.vector.VectorEnv[Any, Any, Any], settings: SpaceSettings | None = None) -> PolicySpec:
    """The policy specification of an environment; see `adapter_of`."""
    return adapter_of(env, settings or SpaceSettings()).spec


def adapter_of(env: gym.vector.VectorEnv[Any, Any, Any], settings: SpaceSettings) -> SpaceAdapter:
    """The adapter of an environment, which is reset once to see whether it masks actions.

    Raises:
        ValueError: a space that no policy here can handle.
        EnvironmentFailure: it cannot be reset.
    """
    try:
        _, info = env.reset(seed=0)
    except (KeyboardInterrupt, EnvironmentFailure):
        raise
    except BaseException as error:
        raise EnvironmentFailure(f"the environment cannot be reset: {one_line(error)}") from error
    return SpaceAdapter(env.single_observation_space, env.single_action_space, settings, masked=ACTION_MASK in info)


def _independent(distribution: ActionDistribution) -> tuple[ActionDistribution, ...]:
    return distribution.parts if isinstance(distribution, Joint) else (distribution,)
