"""Fragments put together: one batch of B whole sequences as tensors on the learner's device.

Legend: B sequences, T steps, S stored carries, F final observations, P steps of the past.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Carry, Observation, PolicySpec, Traces
from mneme.learner.carries import StoredCarries
from mneme.learner.transfer import moved, sent, staging
from mneme.rollout_workers.fragment import Fragment


class PastBatch(NamedTuple):
    """The past of B sequences; see `Past`."""

    observations: Observation  # part -> [B, P, ...]
    resets: Tensor  # [B, P] bool
    carries: Carry  # name -> [B, ...]


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """B sequences of T steps; the fields mean what they mean in `Fragment`."""

    observations: Observation  # part -> [B, T + 1, ...]
    actions: Tensor  # [B, T, *action] int64 or float32
    log_probs: Tensor  # [B, T]
    values: Tensor  # [B, T + 1]
    final_values: Tensor  # [B, T]
    final_observations: Observation  # part -> [F, ...], of these sequences and perhaps of others
    final_index: Tensor  # [B, T] int64, which of them a step that was cut short has; elsewhere without meaning
    rewards: Tensor  # [B, T]
    terminated: Tensor  # [B, T] bool
    truncated: Tensor  # [B, T] bool
    valid: Tensor  # [B, T] bool
    resets: Tensor  # [B, T + 1] bool
    stored: StoredCarries  # S of each
    carry_stride: int
    lane: Tensor  # [B] int64
    first_step: Tensor  # [B] int64
    past: PastBatch | None
    traces: Traces | None = None  # of their first stored carries
    packed: bool  # whether they are episodes end to end, so that what counts steps begins anew in each

    @property
    def sequences(self) -> int:
        """B."""
        return self.actions.shape[0]

    @property
    def length(self) -> int:
        """T."""
        return self.actions.shape[1]

    @property
    def steps(self) -> int:
        """Valid steps, at most B * T."""
        return int(self.valid.sum())

    @property
    def episodes(self) -> Tensor:
        """[B, T] int64, each step's episode, numbered through the batch; what goes on in another row counts anew."""
        opens = self.resets[:, : self.length].clone()
        opens[:, 0] = True
        return (opens.flatten().cumsum(0) - 1).view_as(opens)

    @property
    def cut_short(self) -> Tensor:
        """[B, T] bool; see `Fragment.cut_short`."""
        return self.truncated & ~self.terminated

    @property
    def carries(self) -> Carry:
        """The stored carries, name -> [B, S, ...]: a copy."""
        return self.stored.every()

    def rows(self, index: Tensor) -> "SequenceBatch":
        """The sequences that `index` [n], on the host, names."""
        changes: dict[str, Any] = {}
        stored, index = self.stored.rows(index), moved(index, self.valid.device)
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                changes[name] = x[index]
            elif isinstance(x, dict) and name != "final_observations":
                changes[name] = _indexed(x, index)
        if self.past is not None:
            observations, resets, carries = self.past
            changes["past"] = PastBatch(_indexed(observations, index), resets[index], _indexed(carries, index))
        return replace(self, **changes, stored=stored)

    @classmethod
    def empty(cls, length: int, carry_stride: int, spec: PolicySpec, device: torch.device) -> "SequenceBatch":
        """No sequences, of `length` steps: [0, T, ...]; no carries."""

        def none(steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(0, steps, dtype=dtype, device=device)

        def parts(*leading: int) -> Observation:
            return {
                name: torch.zeros(*leading, *part.shape, dtype=part.dtypes[0], device=device)
                for name, part in spec.observations.items()
            }

        return cls(
            observations=parts(0, length + 1),
            final_observations=parts(0),
            actions=none(length),
            final_index=none(length, torch.int64),
            **{name: none(length) for name in ("log_probs", "final_values", "rewards")},
            **{name: none(length, torch.bool) for name in ("terminated", "truncated", "valid")},
            values=none(length + 1),
            resets=none(length + 1, torch.bool),
            stored=StoredCarries([{}], device),
            carry_stride=carry_stride,
            **{name: torch.zeros(0, dtype=torch.int64, device=device) for name in ("lane", "first_step")},
            past=None,
            packed=False,
            traces=None,
        )

    @classmethod
    def from_fragments(
        cls,
        fragments: Sequence[Fragment],
        device: torch.device,
        *,
        length: int | None = None,
        packed: bool = False,
    ) -> "SequenceBatch":
        """Stack fragments of equal length, carry stride and warm-up along their lanes.

        Args:
            fragments: at least one.
            device: where to.
            length: steps to take, beyond which none is valid; all by default.
            packed: whether sequences are episodes packed end to end.
        """
        if length is not None:
            fragments = [_shortened(fragment, length) for fragment in fragments]

        def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
            # Stacking copies, so the tensor is writable although fragments are read-only views of the object store.
            room = staging((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype, device)
            np.concatenate(arrays, out=room.numpy())
            return sent(room, device)

        def group(mappings: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
            return {name: stacked([mapping[name] for mapping in mappings]) for name in mappings[0]}

        cut_BT = np.concatenate([fragment.cut_short for fragment in fragments])
        pasts = [fragment.past for fragment in fragments if fragment.past is not None]
        alike: dict[str, Any] = {
            name: (group if name in _GROUPS else stacked)([getattr(fragment, name) for fragment in fragments])
            for name in (*_ARRAYS, *_GROUPS)
        }
        return cls(
            **alike,
            stored=StoredCarries([fragment.carries for fragment in fragments], device),
            final_index=stacked([cut_BT.ravel().cumsum().reshape(cut_BT.shape) - 1]),
            carry_stride=fragments[0].carry_stride,
            packed=packed,
            past=PastBatch(
                group([past.observations for past in pasts]),
                stacked([past.resets for past in pasts]),
                group([past.carries for past in pasts]),
            )
            if pasts
            else None,
        )


_GROUPS = ("observations", "final_observations")
_STEPS = ("actions", "log_probs", "final_values", "rewards", "terminated", "truncated", "valid")
_ARRAYS = (*_STEPS, "values", "resets", "lane", "first_step")


def _shortened(fragment: Fragment, length: int) -> Fragment:
    """Views of a fragment's first steps, where those beyond are not valid."""
    if length == fragment.length:
        return fragment
    changes: dict[str, Any] = {name: getattr(fragment, name)[:, :length] for name in _STEPS}
    changes |= {name: getattr(fragment, name)[:, : length + 1] for name in ("values", "resets")}
    S = -(-length // fragment.carry_stride)
    return replace(
        fragment,
        **changes,
        observations={name: x[:, : length + 1] for name, x in fragment.observations.items()},
        carries={name: x[:, :S] for name, x in fragment.carries.items()},
    )


def _indexed(group: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: x[index] for name, x in group.items()}
