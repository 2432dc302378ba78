"""Double-buffered collecting (Sample Factory, Petrenko et al. 2020): one half of the lanes steps while the other is
acted for.

Legend: B lanes, E episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from mneme.rollout_workers.collector import PARTS, Collected, Collector
from mneme.rollout_workers.episodes import EpisodeStats
from mneme.rollout_workers.fragment import Fragment, Past
from mneme.rollout_workers.stopwatch import Stopwatch


class DoubleBuffered:
    """Two collectors of the same policy that take turns: while the environments of one step, the other acts.

    Time is saved where environments step in processes of their own (`AsyncVectorEnv`). Each collector has its lanes,
    carries, noise and history to itself, so the fragment is the one that both would collect one after the other. It is
    also that of one collector of all lanes, as far as a policy's outputs do not depend on how many rows its matrix
    products have.

    Args:
        first: of the first lanes.
        second: of those that follow, in everything else alike.
    """

    def __init__(self, first: Collector, second: Collector) -> None:
        self.halves = first, second

    @torch.no_grad()
    def collect(self, weights_version: int = 0) -> Collected:
        """See `Collector.collect`."""
        watch = Stopwatch(*PARTS)
        *_, collected = zip(*(half.collecting(weights_version, watch) for half in self.halves), strict=True)
        fragments, stats = zip(*filter(None, collected), strict=True)
        return joined_fragments(fragments), joined_stats(stats, [half.env.num_envs for half in self.halves])

    def state(self) -> None:
        """None, as environments in other processes cannot be read (see `Collector.state`)."""

    expected_state = state

    def blank(self) -> Fragment:
        """See `Collector.blank`."""
        return joined_fragments([half.blank() for half in self.halves])


def joined_fragments(fragments: Sequence[Fragment]) -> Fragment:
    """Fragments of as many steps as one of all their lanes."""
    whole: dict[str, Any] = {"carry_stride": fragments[0].carry_stride, "past": None}
    for name in (f.name for f in fields(Fragment) if f.name not in whole):
        whole[name] = _joined([getattr(fragment, name) for fragment in fragments])
    if pasts := [fragment.past for fragment in fragments if fragment.past is not None]:
        whole["past"] = Past(*map(_joined, zip(*pasts, strict=True)))
    return Fragment(**whole)


def _joined(arrays: Sequence[Any]) -> Any:
    """Arrays, or arrays by name, end to end."""
    if isinstance(arrays[0], Mapping):
        return {name: np.concatenate([named[name] for named in arrays]) for name in arrays[0]}
    return np.concatenate(arrays)


def joined_stats(stats: Sequence[EpisodeStats], lanes: Sequence[int]) -> EpisodeStats:
    """The statistics of collectors of so many lanes each, whose time one watch has measured, as of one of all lanes:
    episodes in the order in which they ended."""
    firsts = np.cumsum([0, *lanes[:-1]])
    numbered = [own._replace(lanes=own.lanes + first) for own, first in zip(stats, firsts, strict=True)]
    lane, start, length = (_joined([getattr(own, name) for own in numbered]) for name in ("lanes", "starts", "lengths"))
    order, successes = np.lexsort((lane, start + length)), _joined([own.successes for own in stats])
    return stats[0]._replace(
        lanes=lane[order],
        returns=_joined([own.returns for own in stats])[order],
        lengths=length[order],
        successes=successes[order] if len(successes) else successes,
        starts=start[order],
        oldest=min(own.oldest for own in stats),
        failures=sum((own.failures for own in stats), ()),
        numbers=_joined([own.numbers for own in stats]),
    )
