"""Fragments put together: one batch of N whole sequences as tensors on the learner's device.

Legend: N sequences, T steps, S stored carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controllers import Carry, Observation
from rollout_workers.fragment import Fragment


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """N sequences of T steps; the fields mean what they mean in `Fragment`."""

    observations: Observation  # part -> [N, T + 1, ...]
    actions: Tensor  # [N, T, *action] int64 or float32
    log_probs: Tensor  # [N, T]
    values: Tensor  # [N, T + 1]
    final_values: Tensor  # [N, T]
    rewards: Tensor  # [N, T]
    terminated: Tensor  # [N, T] bool
    truncated: Tensor  # [N, T] bool
    valid: Tensor  # [N, T] bool
    resets: Tensor  # [N, T + 1] bool
    carries: Carry  # name -> [N, S, ...]
    carry_stride: int
    lane: Tensor  # [N] int64
    first_step: Tensor  # [N] int64

    @property
    def sequences(self) -> int:
        """N."""
        return self.actions.shape[0]

    @property
    def length(self) -> int:
        """T."""
        return self.actions.shape[1]

    @property
    def steps(self) -> int:
        """Valid steps, at most N * T."""
        return int(self.valid.sum())

    def rows(self, index: Tensor) -> "SequenceBatch":
        """The sequences that `index` [n] names."""
        changes: dict[str, Any] = {}
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                changes[name] = x[index]
            elif isinstance(x, dict):
                changes[name] = {key: part[index] for key, part in x.items()}
        return replace(self, **changes)

    @classmethod
    def from_fragments(cls, fragments: Sequence[Fragment], device: torch.device) -> "SequenceBatch":
        """Stack fragments of equal length and carry stride along their lanes."""

        def stacked(name: str) -> Tensor:
            return _to_device([getattr(fragment, name) for fragment in fragments], device)

        def stacked_group(name: str) -> dict[str, Tensor]:
            groups = [getattr(fragment, name) for fragment in fragments]
            return {key: _to_device([group[key] for group in groups], device) for key in groups[0]}

        grouped, plain = ("observations", "carries"), {field.name for field in fields(cls)}
        columns: dict[str, Any] = {name: stacked(name) for name in plain - {*grouped, "carry_stride"}}
        columns |= {name: stacked_group(name) for name in grouped}
        return cls(carry_stride=fragments[0].carry_stride, **columns)


def _to_device(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    # Stacking copies, so the tensor is writable although fragments are read-only views of the object store.
    return torch.from_numpy(np.concatenate(arrays)).to(device)
