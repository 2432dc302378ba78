"""Fragments put together: one batch of N whole sequences as tensors on the learner's device.

Legend: N sequences, T steps, S stored carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controllers import Carry
from rollout_workers.fragment import Fragment


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """N sequences of T steps; the fields mean what they mean in `Fragment`."""

    observations: Tensor  # [N, T + 1, *observation]
    actions: Tensor  # [N, T] int64
    log_probs: Tensor  # [N, T]
    values: Tensor  # [N, T + 1]
    final_values: Tensor  # [N, T]
    rewards: Tensor  # [N, T]
    terminated: Tensor  # [N, T] bool
    truncated: Tensor  # [N, T] bool
    resets: Tensor  # [N, T + 1] bool
    carries: Carry  # name -> [N, S, ...]
    carry_stride: int

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
        """N * T."""
        return self.actions.numel()

    def rows(self, index: Tensor) -> "SequenceBatch":
        """The sequences that `index` [n] names."""
        changes: dict[str, Any] = {name: x[index] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, carries={name: carry[index] for name, carry in self.carries.items()}, **changes)

    @classmethod
    def from_fragments(cls, fragments: Sequence[Fragment], device: torch.device) -> "SequenceBatch":
        """Stack fragments of equal length and carry stride along their lanes."""

        def stacked(name: str) -> Tensor:
            return _to_device([getattr(fragment, name) for fragment in fragments], device)

        return cls(
            observations=stacked("observations"),
            actions=stacked("actions"),
            log_probs=stacked("log_probs"),
            values=stacked("values"),
            final_values=stacked("final_values"),
            rewards=stacked("rewards"),
            terminated=stacked("terminated"),
            truncated=stacked("truncated"),
            resets=stacked("resets"),
            carries={
                name: _to_device([fragment.carries[name] for fragment in fragments], device)
                for name in fragments[0].carries
            },
            carry_stride=fragments[0].carry_stride,
        )


def _to_device(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    # Stacking copies, so the tensor is writable although fragments are read-only views of the object store.
    return torch.from_numpy(np.concatenate(arrays)).to(device)
