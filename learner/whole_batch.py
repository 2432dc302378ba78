"""The batch of all learners of a group, of which each holds some sequences.

Its sequences are numbered by rank, and within a rank as they lie there: as one learner would number them that held all.

Legend: B sequences of T steps in all, n of them on this rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mneme.learner.batch import SequenceBatch
from mneme.learner.group import Group


class WholeBatch(NamedTuple):
    """The place of a rank's sequences in the batch of its group."""

    group: Group
    first: int  # number of this rank's first sequence
    own: int  # n
    sequences: int  # B
    valid: Tensor  # [B, T] bool

    @classmethod
    def of(cls, group: Group, batch: SequenceBatch) -> "WholeBatch":
        """The batch of which this rank holds the sequences of `batch`."""
        counts = group.gather(batch.sequences)
        place = cls(group, sum(counts[: group.rank]), batch.sequences, sum(counts), batch.valid)
        return place._replace(valid=place.gathered(batch.valid))

    @property
    def steps(self) -> int:
        """Valid steps."""
        return int(self.valid.sum())

    def gathered(self, x_n: Tensor) -> Tensor:
        """This rank's rows [n, ...] with all others', [B, ...]; to the bit, as every row has zeros added to it."""
        if self.group.size == 1:
            return x_n
        wire = torch.float64 if x_n.is_floating_point() else torch.int64  # as a rank without rows has types of its own
        x_B = torch.zeros(self.sequences, *x_n.shape[1:], dtype=wire, device=x_n.device)
        x_B[self.first : self.first + self.own] = x_n
        return self.group.sum(x_B).to(x_n.dtype)

    def part(self, x_B: Tensor) -> Tensor:
        """This rank's rows of all, [n, ...]."""
        return x_B[self.first : self.first + self.own]

    def here(self, rows: Tensor) -> Tensor:
        """The sequences among `rows` of all that this rank holds, as it numbers them itself."""
        if self.group.size == 1:
            return rows
        return rows[(rows >= self.first) & (rows < self.first + self.own)] - self.first
