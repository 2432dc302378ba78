"""The traces of every lane between two of its sequences; what a trace is, see `controllers/traces.py`.

They are made here and not where the carries are, as one matrix product over a sequence costs far less than a step of
them all. A lane's next sequence begins with the carry that these steps led to, and so with the traces that they led to.

Legend: B sequences of T steps.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mneme.controllers import Policy, Traces
from mneme.learner.batch import SequenceBatch


class LaneTraces:
    """The traces with which each lane's next sequence begins.

    Args:
        policy: on its device, of a controller with elementwise recurrences.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kept: Traces = policy.no_traces(0)  # [lanes, ...]
        self._expected = np.zeros(0, np.int64)  # [lanes] the step at which that lane goes on

    def through(
        self, batch: SequenceBatch, apply: Callable[..., Iterable[Any]] = map, parts: int = 1
    ) -> tuple[SequenceBatch, float]:
        """The batch with the traces of its first carries; those of its last carries, of the present weights, are kept.

        And the share of its sequences that go on from one that was not trained on, so that their traces are missing:
        these are taken to depend on no parameter. `apply` is `map` or what does as it does, on so many parts.
        """
        batch, missing = self._entering(batch)
        shares = torch.arange(batch.sequences).chunk(parts)
        leaving = list(apply(lambda share: self._leaving(batch.rows(share)), shares))
        for name, kept in self._kept.items():
            kept[batch.lane] = torch.cat([part[name] for part in leaving])
        self._expected[batch.lane.cpu().numpy()] = batch.first_step.cpu().numpy() + batch.length
        return batch, missing

    def _entering(self, batch: SequenceBatch) -> tuple[SequenceBatch, float]:
        self._make_room(int(batch.lane.max()) + 1)
        lane, first = batch.lane.cpu().numpy(), batch.first_step.cpu().numpy()
        goes_on = torch.from_numpy(self._expected[lane] == first).to(batch.lane.device)
        traces = {name: kept[batch.lane] for name, kept in self._kept.items()}
        for kept in traces.values():
            kept[~goes_on] = 0
        missing = ~goes_on & ~batch.resets[:, 0]
        return replace(batch, traces=traces), float(missing.float().mean())

    def _leaving(self, batch: SequenceBatch) -> Traces:
        """The traces of the last carries of some sequences that have those of their first."""
        assert batch.traces is not None
        first = batch.stored.at(torch.arange(batch.sequences), slice(0, 1))
        return self._policy.traces_after(
            {name: x[:, : batch.length].transpose(0, 1) for name, x in batch.observations.items()},
            batch.resets[:, : batch.length].t(),
            {name: carry[:, 0] for name, carry in first.items()},
            batch.traces,
        )

    def _make_room(self, lanes: int) -> None:
        if (missing := lanes - len(self._expected)) > 0:
            fresh = self._policy.no_traces(missing)
            self._kept = {name: torch.cat((kept, fresh[name])) for name, kept in self._kept.items()}
            self._expected = np.append(self._expected, np.zeros(missing, np.int64))

    def state(self, copy: Callable[[Tensor], Any]) -> dict[str, Any]:
        """Everything the next traces depend on besides the sequences."""
        return {"expected": self._expected.copy(), **{f"of.{name}": copy(kept) for name, kept in self._kept.items()}}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue where `state()` was taken."""
        if any(len(state[f"of.{name}"]) != len(state["expected"]) for name in self._kept):
            raise ValueError("the traces are of another number of lanes than the steps that they belong to")
        self._expected = state["expected"].copy()
        self._kept = {name: torch.tensor(state[f"of.{name}"], device=like.device) for name, like in self._kept.items()}
