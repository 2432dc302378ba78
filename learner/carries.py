"""The carries of a batch, left where they lie: one before every window is many times what a batch holds besides.

They are copied, and moved to the learner's device, only where they are taken. Legend: B sequences, S stored carries.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Carry
from mneme.learner.transfer import sent, staging


class StoredCarries:
    """The stored carries of B sequences, S each.

    Args:
        parts: of some of the sequences each, one part after the other: name -> [n, S, ...].
        device: where they go when they are taken.
        rows: which sequences of all the parts' these are, [B]; all of them by default.
    """

    def __init__(
        self, parts: Sequence[Mapping[str, np.ndarray]], device: torch.device, rows: np.ndarray | None = None
    ) -> None:
        self._parts, self._device = parts, device
        sizes = [len(next(iter(part.values()))) if part else 0 for part in parts]
        self._starts = np.cumsum([0, *sizes])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows

    @classmethod
    def of(cls, carries_BS: Carry, device: torch.device) -> "StoredCarries":
        """Carries that are tensors."""
        return cls([{name: carry.cpu().numpy() for name, carry in carries_BS.items()}], device)

    def rows(self, index: Tensor) -> "StoredCarries":
        """Those of the sequences that `index` [n], on the host, names; nothing is copied."""
        if not self._parts[0]:
            return self
        return StoredCarries(self._parts, self._device, self._rows[index.numpy()])

    def every(self) -> Carry:
        """All of them, name -> [B, S, ...]."""
        return self._taken(self._rows, slice(None))

    def at(self, index: Tensor, which: slice) -> Carry:
        """Some of each of some sequences [n], on the host: name -> [n, s, ...]."""
        return self._taken(self._rows[index.numpy()], which) if self._parts[0] else {}

    def _taken(self, rows: np.ndarray, which: slice) -> Carry:
        if len(self._parts) == 1 and self._device.type == "cpu":
            return {name: torch.from_numpy(carry[rows, which]) for name, carry in self._parts[0].items()}
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        own = rows - self._starts[part_of]
        taken: Carry = {}
        for name, first in self._parts[0].items():
            room = staging((len(rows), *first[:0, which].shape[1:]), first.dtype, self._device)
            found = room.numpy()
            for number in np.unique(part_of):
                here = part_of == number
                found[here] = self._parts[number][name][:, which][own[here]]
            taken[name] = sent(room, self._device)
        return taken
