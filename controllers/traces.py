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

State = tuple[Tensor, ...]
"""M numbers of every unit, [..., N] each."""

Advance = Callable[[State, Mapping[str, Tensor]], State]
"""A step of every unit: the state, and by parameter its sums [..., G, N], to the next state."""


class Elementwise(NamedTuple):
    """A recurrence in which a unit's next state depends on its own state, its own parameters and the inputs."""

    parameters: Mapping[str, Tensor]
    """Differentiable functions of the controller's: weights of the inputs [G, N, D], or numbers of each unit [G, N],
    which are their own sums."""
    advance: Advance
    initial: State
    """The state at the start of an episode, [N] each."""

    def traced(self) -> dict[str, Tensor]:
        """What has traces: the parameters, and the initial state where it is learned, as [M, N]."""
        learned = {_INITIAL: torch.stack(self.initial)} if self.initial[0].requires_grad else {}
        return {**self.parameters, **learned}


class Run(NamedTuple):
    """T steps of an elementwise recurrence."""

    inputs_TBD: Tensor
    states: State  # after each step, [T, B, N] each
    before: State  # the first, [B, N] each


Traces = dict[str, Tensor]
"""[B, M, G, N] or [B, M, G, N, D] a parameter, by the carry's part and the parameter's name, with a point between."""


def no_traces(cells: Mapping[str, Elementwise], lanes: int) -> Traces:
    """Those of carries that depend on no parameter."""
    return {
        f"{part}.{name}": p.new_zeros(lanes, len(cell.initial), *p.shape)
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
            nothing_BNM = torch.einsum(f"bi{axes},{axes}->bni", traces[f"{part}.{name}"], p - p.detach())
            carry[part] = carry[part] + nothing_BNM.view_as(carry[part])
    return carry


def _after(cell: Elementwise, run: Run, reset_TB: Tensor, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The traces of one part of the carry, by parameter."""
    x_TBD, states, first = run
    T, B, N = states[0].shape
    M = len(states)
    owed_MMBN = torch.eye(M, dtype=x_TBD.dtype, device=x_TBD.device)[:, :, None, None].expand(M, M, B, N)
    sums = {name: torch.zeros_like(s) for name, s in before.items()}
    for start, stop in reversed(blocks_on(x_TBD.device, T, B)):
        into = tuple(
            torch.where(
                reset_TB[start:stop].unsqueeze(-1),
                initial_N,
                torch.cat((h_BN.unsqueeze(0) if start == 0 else h_TBN[start - 1 : start], h_TBN[start : stop - 1])),
            )
            for h_TBN, h_BN, initial_N in zip(states, first, cell.initial, strict=True)
        )
        in_state_KMMBN, in_sums = _derivatives(cell, into, x_TBD[start:stop])
        owed = []  # by the last state to each, [M, M, B, N]
        for in_state_MMBN, reset_B in zip(reversed(in_state_KMMBN), reversed(reset_TB[start:stop]), strict=True):
            owed.append(owed_MMBN)
            owed_MMBN = (owed_MMBN.unsqueeze(2) * in_state_MMBN).sum(1)
            starts_B1 = reset_B.unsqueeze(-1)
            if _INITIAL in sums:
                sums[_INITIAL] += (owed_MMBN * starts_B1).permute(2, 0, 1, 3)
            owed_MMBN = owed_MMBN.masked_fill(starts_B1, 0)
        owed_KMMBN = torch.stack(owed[::-1])
        for name, of_numbers in in_sums.items():
            for i in range(M):
                d_KBGN = owed_KMMBN[:, i, 0].unsqueeze(-2) * of_numbers[0]
                for j in range(1, M):
                    d_KBGN.addcmul_(owed_KMMBN[:, i, j].unsqueeze(-2), of_numbers[j])
                if cell.parameters[name].dim() == 3:
                    sums[name][:, i] += torch.einsum("kbgn,kbd->bgnd", d_KBGN, x_TBD[start:stop])
                else:
                    sums[name][:, i] += d_KBGN.sum(0)
    return {name: s + torch.einsum("ijbn,bjgn...->bign...", owed_MMBN, before[name]) for name, s in sums.items()}


def _derivatives(cell: Elementwise, into: State, x_KBD: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Those of each number of the next state in those of the state, [K, M, M, B, N], and in each parameter's sums,
    [K, B, G, N] a number."""
    sums = {
        name: torch.einsum("kbd,gnd->kbgn", x_KBD, p) if p.dim() == 3 else p.expand(*x_KBD.shape[:2], *p.shape)
        for name, p in cell.parameters.items()
    }
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (*into, *sums.values())]
        own, M = leaves[len(into) :], len(into)
        after = cell.advance(tuple(leaves[:M]), dict(zip(sums, own, strict=True)))
        found = [  # each unit's gradient is its own, as no other depends on it
            torch.autograd.grad(number.sum(), leaves, retain_graph=True, materialize_grads=True) for number in after
        ]
    in_state = torch.stack([torch.stack(of_number[:M], 1) for of_number in found], 1)
    return in_state, {name: [of_number[M + i] for of_number in found] for i, name in enumerate(sums)}
