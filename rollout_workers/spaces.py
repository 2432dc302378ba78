"""Between an environment's spaces and the policy: observations to named parts, packed actions to what `step` takes.

Legend: B lanes, N slots of a packed action.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from controllers import (
    ACTION_MASK,
    PREVIOUS_ACTION,
    ActionHead,
    Bernoulli,
    Categorical,
    Gaussian,
    Image,
    Joint,
    ObservationPart,
    OneHot,
    PolicySpec,
    Vector,
)
from rollout_workers.settings import SpaceSettings

Parts = dict[str, np.ndarray]
Convert = Callable[[np.ndarray], np.ndarray]

PREVIOUS_REWARD = "previous_reward"
_WHOLE = "observation"  # name of the only part of an observation that is not a Dict or a Tuple
_LEAST_IMAGE_SIDE = 3  # pixels; anything smaller is a list of numbers
_PIXEL = 255


class _Leaf(NamedTuple):
    """One simple space inside nested Dict and Tuple spaces."""

    path: tuple[str | int, ...]
    space: gym.Space[Any]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path)) or _WHOLE

    def named(self, use: str) -> str:
        """This leaf in a sentence, as a part of the observation or action space."""
        return f"the {use} space's part {self.name!r}, {self.space}," if self.path else f"the {use} space {self.space}"

    def of(self, value: Any) -> np.ndarray:
        """This leaf's array inside a batched value of the whole space."""
        for key in self.path:
            value = value[key]
        return np.asarray(value)


@dataclass(frozen=True)
class _ObservedLeaf:
    leaf: _Leaf
    part: ObservationPart
    convert: Convert  # the environment's array [B, ...] to the part's


@dataclass(frozen=True)
class _ActedLeaf:
    leaf: _Leaf
    head: ActionHead
    convert: Convert  # slots [B, n] of the packed action to the environment's array [B, ...]


class SpaceAdapter:
    """What a policy must fit, and the two translations around it.

    Args:
        env: a vector environment.
        settings: which parts of the spaces are used, and how.
        masked: whether the environment says which actions are allowed, in `info["action_mask"]` or as the part
            "action_mask" of a Dict observation: an array [B, mask_size], non-zero where allowed.

    Raises:
        ValueError: a space, or a choice in the settings, that no policy here can handle.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], settings: SpaceSettings, masked: bool) -> None:
        self._settings = settings
        self._space = env.single_observation_space
        leaves = list(_leaves(self._space))
        self._mask_leaves = [leaf for leaf in leaves if leaf.path[:1] == (ACTION_MASK,)]
        self._observed = _observed([leaf for leaf in leaves if leaf not in self._mask_leaves], settings)
        self._action_space = env.single_action_space
        self._acted = [_acted(leaf, settings) for leaf in _leaves(self._action_space)]
        ends = np.cumsum([_size(acted.head.action_shape) for acted in self._acted]).tolist()
        self._slots = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        heads = [head for acted in self._acted for head in _independent(acted.head)]
        self._joint = self._acted[0].head if len(self._acted) == 1 else Joint(tuple(heads))
        observations = {observed.leaf.name: observed.part for observed in self._observed}
        if settings.previous_reward:
            observations[PREVIOUS_REWARD] = Vector(1)
        self.spec = PolicySpec(
            observations=observations,
            actions=self._joint,
            masked=masked or bool(self._mask_leaves),
            previous_action=settings.previous_action,
        )

    def observe(self, observation: Any, info: Mapping[str, Any], action_B: np.ndarray, reward_B: np.ndarray) -> Parts:
        """The policy's view [B, ...] of a batched observation, and of the action [B, ...] and reward [B] before it.

        Raises:
            ValueError: a part has another shape than its space, or the mask is missing or of another shape.
        """
        parts = self._parts(observation, action_B, reward_B)
        if self.spec.masked:
            parts[ACTION_MASK] = self._mask(observation, info, len(reward_B))
        return parts

    def observe_final(
        self, observation: Any, info: Mapping[str, Any], lanes: np.ndarray, action_B: np.ndarray, reward_B: np.ndarray
    ) -> Parts:
        """The same [n, ...] of the true final observations of `lanes` [n], which nothing is masked in.

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
            parts[ACTION_MASK] = np.ones((len(lanes), self._joint.mask_size), dtype=np.bool_)
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
        if self._settings.previous_reward:
            parts[PREVIOUS_REWARD] = reward_B[:, None].astype(np.float32)
        if self._settings.previous_action:
            parts[PREVIOUS_ACTION] = action_B
        return parts

    def check_mask(self, mask_BN: np.ndarray) -> None:
        """Refuse a lane that leaves an action nothing to choose.

        Raises:
            ValueError: one sentence that names the lane.
        """
        start = 0
        for head in _independent(self._joint):
            if head.mask_size:
                empty_B = ~mask_BN[:, start : start + head.mask_size].any(axis=1)
                if empty_B.any():
                    raise ValueError(
                        f"the action mask of lane {np.flatnonzero(empty_B)[0]} allows none of {head.mask_size} "
                        f"actions; an environment must leave at least one, or end the episode"
                    )
            start += head.mask_size

    def no_action(self, lanes: int) -> np.ndarray:
        """The packed action of all zeros, [lanes, ...]."""
        return torch.zeros(lanes, *self._joint.action_shape, dtype=self._joint.action_dtype).numpy()

    def to_env(self, action_B: np.ndarray) -> Any:
        """Packed actions [B, *action_shape] as the environment's `step` takes them."""
        slots_BN = action_B.reshape(len(action_B), -1)
        arrays = (acted.convert(slots_BN[:, slots]) for acted, slots in zip(self._acted, self._slots, strict=True))
        return _nested(self._action_space, arrays)

    def _mask(self, observation: Any, info: Mapping[str, Any], lanes: int) -> np.ndarray:
        size = self._joint.mask_size
        if self._mask_leaves:
            masks = [leaf.of(observation).reshape(lanes, -1) for leaf in self._mask_leaves]
        elif ACTION_MASK in info:
            masks = [np.asarray(info[ACTION_MASK])]
        else:
            raise ValueError(f"info holds no {ACTION_MASK!r}, although it did before; give one with every observation")
        mask_BN = np.concatenate(masks, axis=1)
        if mask_BN.shape != (lanes, size) or mask_BN.dtype.kind not in "buif":
            raise ValueError(
                f"the action mask has shape {mask_BN.shape} and type {mask_BN.dtype}; "
                f"it must hold one number or boolean for each of {size} actions, shape {(lanes, size)}"
            )
        return mask_BN.astype(np.bool_)


def policy_spec(env: gym.vector.VectorEnv[Any, Any, Any], settings: SpaceSettings | None = None) -> PolicySpec:
    """The policy specification of an environment, which is reset once to see whether it masks actions.

    Raises:
        ValueError: a space that no policy here can handle.
    """
    _, info = env.reset(seed=0)
    return SpaceAdapter(env, settings or SpaceSettings(), masked=ACTION_MASK in info).spec


def _leaves(space: gym.Space[Any], path: tuple[str | int, ...] = ()) -> Iterator[_Leaf]:
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from _leaves(child, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _leaves(child, (*path, index))
    else:
        yield _Leaf(path, space)


def _nested(space: gym.Space[Any], arrays: Iterator[np.ndarray]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _nested(child, arrays) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(child, arrays) for child in space.spaces)
    return next(arrays)


def _independent(head: ActionHead) -> tuple[ActionHead, ...]:
    return head.parts if isinstance(head, Joint) else (head,)


def _observed(leaves: list[_Leaf], settings: SpaceSettings) -> list[_ObservedLeaf]:
    if settings.keys is not None:
        names = {str(leaf.path[0]) for leaf in leaves if leaf.path}
        for key in settings.keys:
            if key not in names:
                raise ValueError(
                    f"spaces.keys names {key!r}, but the observation has {', '.join(sorted(names)) or 'no parts'}"
                )
        leaves = [leaf for leaf in leaves if leaf.path and str(leaf.path[0]) in settings.keys]
    observed = [_observed_leaf(leaf) for leaf in leaves]
    if settings.features is None:
        return observed
    if len(observed) != 1 or not isinstance(observed[0].part, Vector):
        raise ValueError(
            f"spaces.features is {list(settings.features)}, but the observation is not one flat Box; "
            f"leave it unset, or choose parts with spaces.keys"
        )
    size, convert = observed[0].part.size, observed[0].convert
    if max(settings.features) >= size:
        raise ValueError(
            f"spaces.features names feature {max(settings.features)}, but the observation has {size}; "
            f"they are numbered from 0"
        )
    chosen = list(settings.features)
    return [_ObservedLeaf(observed[0].leaf, Vector(len(chosen)), lambda x: convert(x)[:, chosen])]


def _observed_leaf(leaf: _Leaf) -> _ObservedLeaf:
    space = leaf.space
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "fiub":
        if (image := _image_shape(space)) is not None:
            pixels = space.dtype == np.uint8
            stored = space.dtype if pixels else np.dtype(np.float32)
            channels_last = image[2] <= image[0]
            scale = 1.0 / _PIXEL if pixels else 1.0
            return _ObservedLeaf(
                leaf, Image(image, channels_last, scale), lambda x: x.reshape(len(x), *image).astype(stored, copy=False)
            )
        return _ObservedLeaf(leaf, Vector(_size(space.shape)), _as_floats)
    if isinstance(space, spaces.MultiBinary):
        return _ObservedLeaf(leaf, Vector(_size(space.shape)), _as_floats)
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return _ObservedLeaf(leaf, OneHot((int(space.n),)), lambda x: x.reshape(len(x), 1).astype(np.int64) - first)
    if isinstance(space, spaces.MultiDiscrete):
        firsts = space.start.ravel().astype(np.int64)
        counts = OneHot(tuple(int(n) for n in space.nvec.ravel()))
        return _ObservedLeaf(leaf, counts, lambda x: x.reshape(len(x), -1).astype(np.int64) - firsts)
    remedy = "choose parts with spaces.keys, or wrap the environment" if leaf.path else "wrap the environment"
    raise ValueError(
        f"{leaf.named('observation')} is not supported (Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple "
        f"of these are); {remedy}"
    )


def _image_shape(space: spaces.Box) -> tuple[int, int, int] | None:
    """Three axes if the space holds images: any Box of three axes, and a Box of bytes of two."""
    shape = space.shape
    if len(shape) == 2 and space.dtype == np.uint8:
        shape = (*shape, 1)
    if len(shape) != 3:
        return None
    sides = shape[:2] if shape[2] <= shape[0] else shape[1:]
    return (shape[0], shape[1], shape[2]) if min(sides) >= _LEAST_IMAGE_SIDE else None


def _as_floats(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float32, copy=False)


def _acted(leaf: _Leaf, settings: SpaceSettings) -> _ActedLeaf:
    space = leaf.space
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return _ActedLeaf(leaf, Categorical(int(space.n)), lambda a: a[:, 0].astype(np.int64, copy=False) + first)
    if isinstance(space, spaces.MultiDiscrete):
        shape, start = space.shape, space.start
        heads = Joint(tuple(Categorical(int(n)) for n in space.nvec.ravel()))
        return _ActedLeaf(leaf, heads, lambda a: a.astype(np.int64).reshape(-1, *shape) + start)
    if isinstance(space, spaces.MultiBinary):
        shape, dtype = space.shape, space.dtype
        return _ActedLeaf(leaf, Bernoulli(_size(shape)), lambda a: a.reshape(-1, *shape).astype(dtype))
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind == "f":
        head = Gaussian(_size(space.shape), settings.squash)
        return _ActedLeaf(leaf, head, _box_action(space, leaf, settings.squash))
    raise ValueError(
        f"{leaf.named('action')} is not supported (Discrete, MultiDiscrete, MultiBinary, Box of floats, and Dict and "
        f"Tuple of these are); wrap the environment"
    )


def _box_action(space: spaces.Box, leaf: _Leaf, squash: bool) -> Convert:
    """Where all sides are bounded, [-1, 1] of the distribution spans the Box; elsewhere its numbers are the Box's."""
    low, high, shape, dtype = space.low, space.high, space.shape, space.dtype
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    if squash and not bounded:
        raise ValueError(f"spaces.squash is set, but {leaf.named('action')} has no bounds; leave it unset")

    def convert(a: np.ndarray) -> np.ndarray:
        a = a.reshape(-1, *shape)
        if bounded:
            unit = np.tanh(a) if squash else np.clip(a, -1.0, 1.0)
            a = low + (unit + 1.0) * 0.5 * (high - low)
        return np.clip(a, low, high).astype(dtype, copy=False)

    return convert


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
