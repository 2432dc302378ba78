"""The guard of other people's vector forms, whose lanes cannot be reset one by one.

Legend: B environments.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from mneme.envs.enclosed import VectorEnv
from mneme.envs.guard import EnvironmentFailure, failure_info, reset_failure_info
from mneme.envs.masks import ACTION_MASK, Masks

_ADRIFT = "mneme.adrift"  # in `info`


class VectorGuard(gym.vector.VectorWrapper):
    """Cuts the episode of a lane whose action mask leaves nothing to choose, and leaves the other lanes alone.

    The lane is then adrift: its environment goes on, as nobody but itself can reset it, and what it does belongs to no
    episode until it has ended one by itself. `failures_in`, `reset_failures_in` and `adrift_in` find it in `info`.
    Masks of a method `action_masks()` are put into `info`.

    Args:
        env: a vector environment of same-step or next-step autoreset.
        name: of the environment, for what is said.
        max_failures: so many of a lane in a row, with no episode between them that ended by itself, raise.

    Raises:
        EnvironmentFailure: one sentence.
    """

    def __init__(self, env: VectorEnv, name: str, max_failures: int) -> None:
        super().__init__(env)
        self._name, self._max_failures = name, max_failures
        self._masks = Masks(env, name)
        self._next_step = env.metadata.get("autoreset_mode") is AutoresetMode.NEXT_STEP
        self._failures_B = np.zeros(self.num_envs, np.int64)
        self._begin()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every lane."""
        self._begin()
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        everyone = np.ones(self.num_envs, np.bool_)
        return observation, self._looked_at(observation, info, opens_B=everyone, closes_B=~everyone)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in every lane."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended_B = np.asarray(terminated, np.bool_) | np.asarray(truncated, np.bool_)
        self._failures_B[ended_B & ~self._adrift_B] = 0
        opens_B = self._closed_B if self._next_step else ended_B
        closes_B = ended_B & ~opens_B
        return observation, reward, terminated, truncated, self._looked_at(observation, info, opens_B, closes_B)

    def _begin(self) -> None:
        self._adrift_B = np.zeros(self.num_envs, np.bool_)
        self._closed_B = np.zeros(self.num_envs, np.bool_)  # lanes that the next step only resets

    def _looked_at(
        self, observation: Any, info: dict[str, Any], opens_B: np.ndarray, closes_B: np.ndarray
    ) -> dict[str, Any]:
        """The info with masks and what was found in them. Observations open an episode where `opens_B`; they are the
        last of one, in which nothing is chosen, where `closes_B`."""
        mask_BN = self._masks.read(info)
        info = {name: value for name, value in info.items() if name != ACTION_MASK}
        if mask_BN is not None:
            info[ACTION_MASK] = mask_BN
        self._closed_B = closes_B
        self._adrift_B = self._adrift_B & ~opens_B
        empty = self._masks.empty(mask_BN, observation)
        found = {lane: why for lane, why in empty.items() if not (self._adrift_B[lane] or closes_B[lane])}
        sentences = {lane: self._failed(lane, why, bool(opens_B[lane])) for lane, why in found.items()}
        self._adrift_B[list(found)] = True
        if not self._adrift_B.any():
            return info
        return (
            info
            | {_ADRIFT: self._adrift_B.copy()}
            | failure_info({lane: why for lane, why in sentences.items() if not opens_B[lane]}, self.num_envs)
            | reset_failure_info({lane: why for lane, why in sentences.items() if opens_B[lane]}, self.num_envs)
        )

    def _failed(self, lane: int, why: str, in_reset: bool) -> str:
        self._failures_B[lane] += 1
        sentence = f"the environment {self._name} failed in {'a reset' if in_reset else 'a step'} of lane {lane}: {why}"
        if self._failures_B[lane] < self._max_failures:
            return f"{sentence}; the lane counts again once it has ended this episode by itself"
        raise EnvironmentFailure(
            f"{sentence}; as this is failure {self._failures_B[lane]} in a row without an episode that ended by "
            f"itself, mend the environment or raise env.max_failures"
        )


def adrift_in(info: dict[str, Any]) -> np.ndarray | None:
    """The lanes [B] whose next step belongs to no episode, from the info of a vector reset or step; None: nobody's."""
    adrift_B: np.ndarray | None = info.get(_ADRIFT)
    return adrift_B
