"""Single steps of many lanes in one table, from which rows of any others than the collected ones can be made.

Legend: B lanes, T steps of a fragment, N steps of the table, F of them with a final observation, C with a carry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mneme.rollout_workers.fragment import Fragment
from mneme.rollout_workers.state import State

_PLAIN = (
    "actions", "log_probs", "values", "final_values", "rewards", "terminated", "truncated", "valid", "weights_version",
    "stored",
)  # fmt: skip
_GROUPS = ("observations", "final_observations", "carries")
_SOME = {"final_observations": "cut_short", "carries": "stored"}
"""Groups with an entry for some steps only, and the flag that says for which."""


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """N steps; the fields mean what they mean in `Fragment`."""

    observations: Mapping[str, np.ndarray]  # part -> [N, ...]
    actions: np.ndarray  # [N, *action]
    log_probs: np.ndarray  # [N]
    values: np.ndarray  # [N]
    final_values: np.ndarray  # [N]
    final_observations: Mapping[str, np.ndarray]  # part -> [F, ...], in the order of the steps that were cut short
    rewards: np.ndarray  # [N]
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    valid: np.ndarray  # [N] bool
    weights_version: np.ndarray  # [N] int64
    stored: np.ndarray  # [N] bool, true where the incoming carry is known
    carries: Mapping[str, np.ndarray]  # name -> [C, *carry], in the order of the steps where they are stored

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def cut_short(self) -> np.ndarray:
        """[N] bool; see `Fragment.cut_short`."""
        cut: np.ndarray = self.truncated & ~self.terminated
        return cut

    @property
    def done(self) -> np.ndarray:
        """[N] bool, true where the next step of the lane opens an episode."""
        done: np.ndarray = self.terminated | self.truncated | ~self.valid
        return done

    @classmethod
    def of(cls, fragment: Fragment) -> "StepTable":
        """All steps of a fragment, lane by lane."""
        B, T = fragment.num_envs, fragment.length

        def flat(x: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(x[:, :T]).reshape(B * T, *x.shape[2:])

        plain: dict[str, Any] = {name: flat(getattr(fragment, name)) for name in _PLAIN[:-2]}
        return cls(
            **plain,
            observations={name: flat(part) for name, part in fragment.observations.items()},
            final_observations=fragment.final_observations,
            weights_version=np.repeat(fragment.weights_version, T),
            stored=np.tile(np.arange(T) % fragment.carry_stride == 0, B),
            carries={name: carry.reshape(-1, *carry.shape[2:]) for name, carry in fragment.carries.items()},
        )

    def joined(self, more: "StepTable") -> "StepTable":
        """These steps, and then `more`."""
        theirs = more.state()
        return self._with({name: np.concatenate([x, theirs[name]]) for name, x in self.state().items()})

    def take(self, index: np.ndarray, keeps_carry: np.ndarray) -> "StepTable":
        """A copy of the steps that `index` [n] names, with those of their carries that `keeps_carry` [n] says."""
        plain: dict[str, Any] = {name: getattr(self, name)[index] for name in _PLAIN}
        plain["stored"] &= keeps_carry
        return StepTable(
            **plain,
            observations={name: x[index] for name, x in self.observations.items()},
            final_observations=self.some("final_observations", index[self.cut_short[index]]),
            carries=self.some("carries", index[plain["stored"]]),
        )

    def some(self, group: str, index: np.ndarray) -> State:
        """The entries of the steps that `index` [n] names, each of which has one: name -> [n, ...]."""
        entry = getattr(self, _SOME[group]).cumsum() - 1
        return {name: x[entry[index]] for name, x in getattr(self, group).items()}

    def state(self) -> State:
        """All arrays, by name."""
        named = {f"{group}.{name}": x for group in _GROUPS for name, x in getattr(self, group).items()}
        return {name: getattr(self, name) for name in _PLAIN} | named

    def like(self, state: Mapping[str, np.ndarray]) -> "StepTable":
        """A copy of the table whose `state()` this was, with the same names as this one.

        Raises:
            ValueError: the arrays are of different numbers of steps.
        """
        table = self._with({name: state[name].copy() for name in self.state()})
        counts = {group: int(getattr(table, flag).sum()) for group, flag in _SOME.items()}
        for name, x in table.state().items():
            expected = counts.get(name.partition(".")[0], len(table))
            if len(x) != expected:
                raise ValueError(f"{name} holds {len(x)} entries for {expected} steps")
        return table

    def _with(self, state: Mapping[str, np.ndarray]) -> "StepTable":
        """Other arrays by the names of `state()`."""
        groups: dict[str, Any] = {g: {name: state[f"{g}.{name}"] for name in getattr(self, g)} for g in _GROUPS}
        plain: dict[str, Any] = {name: state[name] for name in _PLAIN}
        return replace(self, **groups, **plain)
