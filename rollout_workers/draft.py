"""A fragment in the making, step by step.

Legend: B environments, T steps, S stored carries, F final observations.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from mneme.controllers import Act, Carry
from mneme.rollout_workers.fragment import Fragment, Past
from mneme.rollout_workers.lanes import Transition
from mneme.rollout_workers.spaces import Parts


class Draft:
    """Room for T steps of B lanes, and the true final observations as they come.

    Args:
        observation: one of B lanes; its parts say which, of what size and type.
        action_B: likewise.
        carry: likewise.
        length: T.
        carry_stride: a carry is stored before every step that this divides.
        provenance: the fields of `Fragment` that say where it comes from, each [B].
    """

    def __init__(
        self, observation: Parts, action_B: np.ndarray, carry: Carry, length: int, carry_stride: int, **provenance: Any
    ) -> None:
        B, T, S = len(action_B), length, -(-length // carry_stride)

        def empty(steps: int, like: np.ndarray) -> np.ndarray:
            return np.empty((B, steps, *like.shape[1:]), like.dtype)

        def flags(steps: int) -> np.ndarray:
            return np.empty((B, steps), np.bool_)

        def numbers(steps: int) -> np.ndarray:
            return np.empty((B, steps), np.float32)

        self.fragment = Fragment(
            observations={name: empty(T + 1, part) for name, part in observation.items()},
            final_observations={name: np.empty((0, *part.shape[1:]), part.dtype) for name, part in observation.items()},
            actions=empty(T, action_B), log_probs=numbers(T), values=numbers(T + 1),
            final_values=np.zeros((B, T), np.float32), rewards=numbers(T),
            terminated=flags(T), truncated=flags(T), valid=flags(T), resets=flags(T + 1),
            carries={name: empty(S, c.numpy()) for name, c in carry.items()}, carry_stride=carry_stride, **provenance,
        )  # fmt: skip
        self._finals: list[tuple[np.ndarray, int, Parts]] = []  # lanes [n], step, their final observations [n, ...]

    def state(self, t: int, observation: Parts, reset_B: np.ndarray, carry: Carry) -> None:
        """Record what step t starts from: observation, reset flag and, where one is due, carry."""
        fragment = self.fragment
        for name, part in observation.items():
            fragment.observations[name][:, t] = part
        fragment.resets[:, t] = reset_B
        if t < fragment.length and t % fragment.carry_stride == 0:
            for name, c in carry.items():
                fragment.carries[name][:, t // fragment.carry_stride] = c.numpy()

    def act(self, t: int, act: Act) -> None:
        """Record what the policy chose at step t: action, log-probability and value."""
        fragment = self.fragment
        fragment.actions[:, t] = act.action_B.numpy()
        fragment.log_probs[:, t] = act.log_prob_B.numpy()
        fragment.values[:, t] = act.value_B.numpy()

    def step(self, t: int, step: Transition) -> None:
        """Record the result of step t: reward, terminated, truncated and valid."""
        fragment = self.fragment
        fragment.rewards[:, t] = step.reward_B
        fragment.terminated[:, t], fragment.truncated[:, t] = step.terminated_B, step.truncated_B
        fragment.valid[:, t] = step.valid_B

    def last_value(self, value_B: np.ndarray) -> None:
        """Record the value of the observation after the last step."""
        self.fragment.values[:, -1] = value_B

    def finals(self, t: int, lanes: np.ndarray, observation: Parts, values: np.ndarray) -> None:
        """Record the true final observations [n, ...] of lanes [n] that step t cut short, and their values [n]."""
        self.fragment.final_values[lanes, t] = values
        self._finals.append((lanes, t, observation))

    def finished(self, past: Past | None) -> Fragment:
        """The fragment, once all its steps are written."""
        if not self._finals:
            return replace(self.fragment, past=past)
        lanes = np.concatenate([lanes for lanes, _, _ in self._finals])
        order = np.argsort(lanes, kind="stable")  # they came in the order of their steps
        joined = {
            name: np.concatenate([part[name] for _, _, part in self._finals])[order]
            for name in self.fragment.final_observations
        }
        return replace(self.fragment, final_observations=joined, past=past)
