"""Traces: the derivatives of an elementwise recurrence's state in its parameters, through all the steps that made it.

    S' = (dh'/dh) S + dh'/dp            dL/dp = (through the steps at hand) + (dL/dh) S

This is real-time recurrent learning (Williams & Zipser 1989). In general a trace has a number for every unit and every
parameter. Where a unit's next state depends on no other unit's state, it has one for each of the unit's own parameters
(Mozer 1989; Zucchet et al. 2023, "Online learning of long-range dependencies", for linear recurrences), and as much
memory for a thousand steps as for one.

Over T steps nothing is multiplied step by step but what a unit's last state owes to its states before, C; all else is
one matrix product over the steps: S_T = C_0 S_0 + sum_t C_t dh_t/dp.

Legend: T steps (K of a block), B lanes, N units of M numbers each, D inputs, G sums of a unit.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mneme.controllers.scans.blocks import blocks_on

_INITIAL = "initial"

Advance = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""A step of every unit: states [..., N, M], and by parameter its sums [..., G, N], to the next states [..., N, M]."""


class Elementwise(NamedTuple):
    """A recurrence in which a unit's next state depends on its own state, its own parameters and the inputs."""

    parameters: Mapping[str, Tensor]
    """Differentiable functions of the controller's: weights of the inputs [G, N, D], or numbers of each unit [G, N],
    which are their own sums."""
    advance: Advance
    initial: Tensor
    """The state at the start of an episode, [N, M]."""

    def traced(self) -> dict[str, Tensor]:
        """What has traces: the parameters, and the initial state where it is learned, as [M, N]."""
        return {**self.parameters, **({_INITIAL: self.initial.t()} if self.initial.requires_grad else {})}


class Run(NamedTuple):
    """T steps of an elementwise recurrence."""

    inputs_TBD: Tensor
    states_TBNM: Tensor  # after each step
    before_BNM: Tensor  # the first


Traces = dict[str, Tensor]
"""[B, M, G, N] or [B, M, G, N, D] a parameter, by the carry's part and the parameter's name, with a point between."""


def no_traces(cells: Mapping[str, Elementwise], lanes: int) -> Traces:
    """Those of carries that depend on no parameter."""
    return {
        f"{part}.{name}": p.new_zeros(lanes, cell.initial.shape[1], *p.shape)
        for part, cell in cells.items()
        for name, p in cell.traced().items()
    }


@torch.no_grad()
def traces_after(cells: Mapping[str, Elementwise], runs: Mapping[str, Run], reset_TB: Tensor, before: Traces) -> Traces:
    """The traces of the carry after the last step.

    Args:
        cells: the recurrences, by the carry's parts, with the weights that made the states.
        runs: the steps of each.
        reset_TB: true where a lane starts from the initial state.
        before: the traces of the carry before the first step.
    """
    found: Traces = {}
    for part, cell in cells.items():
        own = {name: before[f"{part}.{name}"] for name in cell.traced()}
        found |= {f"{part}.{name}": s for name, s in _after(cell, runs[part], reset_TB, own).items()}
    return found


def traced(cells: Mapping[str, Elementwise], carry: Mapping[str, Tensor], traces: Traces) -> dict[str, Tensor]:
    """The same carry, whose gradient reaches the parameters by its traces."""
    carry = dict(carry)
    for part, cell in cells.items():
        for name, p in cell.traced().items():
            axes = "gnd"[: p.dim()]
            added_BNM = torch.einsum(f"bi{axes},{axes}->bni", traces[f"{part}.{name}"], p - p.detach())  # nothing
            carry[part] = carry[part] + added_BNM.view_as(carry[part])
    return carry


def _after(cell: Elementwise, run: Run, reset_TB: Tensor, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    x_TBD, states, h_BNM = run
    T, B, N, M = states.shape
    owed_BNMM = torch.eye(M, dtype=h_BNM.dtype, device=h_BNM.device).expand(B, N, M, M)  # by the last state to this one
    sums = {name: torch.zeros_like(s) for name, s in before.items()}
    for start, stop in reversed(blocks_on(x_TBD.device, T, B)):
        first = h_BNM.unsqueeze(0) if start == 0 else states[start - 1 : start]
        into_KBNM = torch.cat((first, states[start : stop - 1]))
        into_KBNM = torch.where(reset_TB[start:stop, :, None, None], cell.initial, into_KBNM)
        in_state_KBNMM, in_sums = _derivatives(cell, into_KBNM, x_TBD[start:stop])
        owed = []
        for in_state_BNMM, reset_B in zip(reversed(in_state_KBNMM), reversed(reset_TB[start:stop]), strict=True):
            owed.append(owed_BNMM)
            owed_BNMM = _product(owed_BNMM, in_state_BNMM)
            starts_B = reset_B[:, None, None, None]
            if _INITIAL in sums:
                sums[_INITIAL] += (owed_BNMM * starts_B).permute(0, 2, 3, 1)
            owed_BNMM = owed_BNMM.masked_fill(starts_B, 0)
        owed_KBNMM = torch.stack(owed[::-1])
        for name, d_KBGNM in in_sums.items():
            d_KBGNM = _product(owed_KBNMM.unsqueeze(2), d_KBGNM.unsqueeze(-1)).squeeze(-1)
            if cell.parameters[name].dim() == 3:
                sums[name] += torch.einsum("kbgni,kbd->bignd", d_KBGNM, x_TBD[start:stop])
            else:
                sums[name] += d_KBGNM.sum(0).movedim(-1, 1)
    return {name: s + torch.einsum("bnij,bjgn...->bign...", owed_BNMM, before[name]) for name, s in sums.items()}


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, for matrices so small that one by one they would cost more than all their numbers."""
    first, *rest = (column * row for column, row in zip(a.split(1, -1), b.split(1, -2), strict=True))
    return sum(rest, first)


def _derivatives(cell: Elementwise, h_KBNM: Tensor, x_KBD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Those of each number of the next state in those of the state, [K, B, N, M, M], and in each parameter's sums,
    [K, B, G, N, M]."""
    sums = {
        name: torch.einsum("kbd,gnd->kbgn", x_KBD, p) if p.dim() == 3 else p.expand(*x_KBD.shape[:2], *p.shape)
        for name, p in cell.parameters.items()
    }
    with torch.enable_grad():
        h_KBNM, *leaves = (x.detach().requires_grad_() for x in (h_KBNM, *sums.values()))
        after_KBNM = cell.advance(h_KBNM, dict(zip(sums, leaves, strict=True)))
        numbers_M = after_KBNM.sum((0, 1, 2))  # each unit's gradient is its own, as no other depends on it
        wanted = h_KBNM, *leaves
        found = [torch.autograd.grad(n, wanted, retain_graph=True, materialize_grads=True) for n in numbers_M]
    in_state, *in_sums = (torch.stack(of_numbers, -1) for of_numbers in zip(*found, strict=True))
    return in_state.mT, dict(zip(sums, in_sums, strict=True))
