"""The distance between the carries that came with a batch and those that the current weights give.

Each part of a carry is measured by itself: in one norm over all, a counter of steps, which is the same under any
weights, would hide how stale everything else is.

Legend: B sequences, S carries of each, M carries compared.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers import Carry, Policy
from mneme.learner.anchor import Anchor
from mneme.learner.batch import SequenceBatch

_NOTHING = 1e-8  # a norm below this is that of nothing


class Staleness(NamedTuple):
    """The staleness of the M carries that were compared; NaN in total where there were none."""

    carries: int  # M
    distance: float  # mean of the parts' own, weighted by how many numbers each part holds
    kl: float  # mean KL(policy from the recomputed carry || policy from the stored one), nats
    part_distance: dict[str, float]  # part of the carry -> mean ||stored - recomputed|| / ||recomputed||
    part_kl: dict[str, float]  # part -> the KL that is left if this part alone is as it was stored

    @classmethod
    def of_nothing(cls) -> "Staleness":
        """The staleness where no carry was compared."""
        return cls(0, math.nan, math.nan, {}, {})

    @classmethod
    def joined(cls, parts: "Sequence[Staleness]") -> "Staleness":
        """The staleness of several parts of a batch together."""
        total = sum(part.carries for part in parts)
        weighed = [(part, part.carries / total) for part in parts if part.carries]
        if not weighed:
            return parts[0]
        names = weighed[0][0].part_distance
        return cls(
            total,
            sum(weight * part.distance for part, weight in weighed),
            sum(weight * part.kl for part, weight in weighed),
            {name: sum(weight * part.part_distance[name] for part, weight in weighed) for name in names},
            {name: sum(weight * part.part_kl[name] for part, weight in weighed) for name in names},
        )

    def metrics(self) -> dict[str, float]:
        """The totals as `staleness` and `staleness_kl`, and each part's as `staleness/PART` and `staleness_kl/PART`."""
        return {
            "staleness": self.distance,
            "staleness_kl": self.kl,
            **{f"staleness/{name}": distance for name, distance in self.part_distance.items()},
            **{f"staleness_kl/{name}": kl for name, kl in self.part_kl.items()},
        }


@torch.no_grad()
def measure_staleness(policy: Policy, batch: SequenceBatch, anchor: Anchor) -> Staleness:
    """Compare stored carries with the anchored ones at the same steps.

    Those that a reset replaces at once are left out, as nothing is made of them, and the first of a sequence where it
    could not be renewed, as nothing is known of it.
    """
    T, stride = batch.length, batch.carry_stride
    used_BS = ~batch.resets[:, :T:stride]
    if batch.past is None:
        used_BS[:, 0] = False
    M = int(used_BS.sum())
    stored = {name: c[used_BS] for name, c in batch.carries.items()}  # [M, ...]
    if not M or not stored:
        return Staleness.of_nothing()
    recomputed = {name: c[used_BS] for name, c in anchor.carries.items()}
    distance = {name: _distance(stored[name], recomputed[name]) for name in stored}
    sizes = {name: c[0].numel() for name, c in stored.items()}
    total = sum(sizes[name] * d for name, d in distance.items()) / sum(sizes.values())

    observations = {name: x[:, :T:stride][used_BS][None] for name, x in batch.observations.items()}
    going_on = torch.zeros(1, M, dtype=torch.bool, device=used_BS.device)

    def parameters(carry: Carry) -> Tensor:
        return policy.scan(observations, going_on, carry).parameters_TBA

    fresh = parameters(recomputed)

    def kl(carry: Carry) -> float:
        return float(policy.action_distribution.kl(fresh, parameters(carry)).mean())

    whole = kl(stored)
    alone = {name: whole if len(stored) == 1 else kl({**recomputed, name: stored[name]}) for name in stored}
    return Staleness(M, total, whole, distance, alone)


def _distance(stored: Tensor, recomputed: Tensor) -> float:
    """Mean relative distance of [M, ...]; where there should be nothing, everything that there is counts as 1."""
    precise = torch.float32 if stored.device.type == "mps" else torch.float64  # which Apple's GPUs lack
    apart, size = (x.flatten(1).to(precise).norm(dim=1) for x in (stored - recomputed, recomputed))
    return float(torch.where(size > _NOTHING, apart / size, (apart > _NOTHING).to(precise)).mean())
