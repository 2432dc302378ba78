"""Backpropagation through time over a run: the modes of a schedule, and a K that adapts.

Legend: B sequences, T steps, K window steps.
"""

import math

import numpy as np
import torch

from mneme.controllers import Policy
from mneme.learner.batch import SequenceBatch
from mneme.learner.ppo import loss_of, steps_of, units
from mneme.learner.returns import Returns
from mneme.learner.settings import LearnerSettings
from mneme.learner.whole_batch import WholeBatch
from mneme.learner.windows import Piece
from mneme.rollout_workers.state import State

_GROW, _SHRINK = 0.5, 0.1  # half a window more squares what fades in half a window, so that what grew does not shrink
_LOOKS = 4  # updates over which is averaged before K changes
_LEAST = 1e-6  # of the ratio, whose logarithm is averaged
_SEQUENCES = 8  # of a batch that are looked at
_STAGE, _LENGTH, _SUM, _COUNT = "bptt.stage", "bptt.length", "bptt.log_ratio_sum", "bptt.looks"


class Bptt:
    """The mode and the K of a run's updates.

    Args:
        settings: as configured.
        total_timesteps: the run's length in environment steps.
    """

    def __init__(self, settings: LearnerSettings, total_timesteps: int) -> None:
        self._configured, self._total = settings, total_timesteps
        self._modes = settings.modes
        self._stage = 0  # of the modes
        self._length = settings.bptt_length
        self._log_ratio_sum, self._looks = 0.0, 0

    @property
    def settings(self) -> LearnerSettings:
        """The settings with the present mode and K as if they were the only ones."""
        return self._configured.at(self._modes[self._stage], self._length)

    @property
    def adapts(self) -> bool:
        """True if K is looking for its length."""
        return self._configured.max_bptt_length is not None and self._modes[self._stage] == "truncated"

    def advance(self, env_steps: int) -> None:
        """Enter the mode that the schedule has after `env_steps` environment steps, if it goes by steps."""
        if self._configured.mode_schedule == "steps":
            due = sum(env_steps >= share * self._total for share in self._configured.switches)
            self._stage = max(self._stage, due)  # a run that is extended does not go back

    def next_mode(self) -> None:
        """Enter the next mode, if there is one."""
        self._stage = min(self._stage + 1, len(self._modes) - 1)

    def look(self, ratio: float | None) -> None:
        """Take in what `carry_gradient_ratio` says; after some looks K doubles, halves or stays."""
        assert self._configured.max_bptt_length is not None
        if ratio is None:
            return
        self._log_ratio_sum += math.log(max(ratio, _LEAST))
        self._looks += 1
        if self._looks < _LOOKS:
            return
        mean = math.exp(self._log_ratio_sum / self._looks)
        self._log_ratio_sum, self._looks = 0.0, 0
        if mean > _GROW:
            self._length = min(2 * self._length, self._configured.max_bptt_length)
        elif mean < _SHRINK:
            self._length = max(self._length // 2, self._configured.bptt_length)

    def state(self) -> State:
        """The present mode and K, where they may change."""
        state: State = {}
        if len(self._modes) > 1:
            state[_STAGE] = np.array(self._stage)
        if self._configured.max_bptt_length is not None:
            state |= {_LENGTH: np.array(self._length), _COUNT: np.array(self._looks)}
            state[_SUM] = np.array(self._log_ratio_sum)
        return state

    def set_state(self, state: State) -> None:
        """Continue where `state()` was taken.

        Raises:
            ValueError: there is no such mode or K.
        """
        if _STAGE in state:
            self._stage = int(state[_STAGE])
            if not 0 <= self._stage < len(self._modes):
                raise ValueError(f"{_STAGE} is {self._stage}; there are {len(self._modes)} modes")
        if _LENGTH in state:
            least, most = self._configured.bptt_length, self._configured.max_bptt_length
            self._length, self._looks = int(state[_LENGTH]), int(state[_COUNT])
            if most is None or not least <= self._length <= most:
                raise ValueError(f"{_LENGTH} is {self._length}; it must be from {least} to {most}")
            self._log_ratio_sum = float(state[_SUM])


def carry_gradient_ratio(
    policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns, whole: WholeBatch
) -> float | None:
    """Norm of the loss's gradient in the carry that enters a window, over that in the carry in the window's middle.

    Means over the windows of some sequences of a batch, of K steps each up to the last one: what came from the window's
    losses alone. Near 0 where the gradient has faded before it reaches the window's start; near 1 or above where the
    cut stops it. Windows in whose first half an episode begins say nothing of that; None where all are such, or where
    nothing is cut or carried.

    Args:
        policy: the weights at which it is taken.
        s: in truncated mode, of K steps.
        batch: of whole sequences; of this rank.
        returns: advantages and value targets; of all.
        whole: the batch of all ranks, of which some sequences are looked at.
    """
    if not policy.controller.initial() or not 2 <= s.bptt_length < batch.length:
        return None
    count = min(_SEQUENCES, whole.sequences)
    rows = whole.here(torch.arange(count) * whole.sequences // count)
    own = Returns(*map(whole.part, returns))
    sums = zip(*whole.group.gather(_window_gradients(policy, s, batch, own, rows)), strict=True)
    at_start, in_middle, windows = map(sum, sums)
    if not windows:
        return None
    return at_start / in_middle if in_middle > 0 else 0.0


def _window_gradients(
    policy: Policy, s: LearnerSettings, batch: SequenceBatch, returns: Returns, rows: torch.Tensor
) -> tuple[float, float, int]:
    """Sums over some sequences' windows of the norms of the gradients in the first carry and in the middle one; and how
    many windows."""
    at_start, in_middle, windows, piece = 0.0, 0.0, 0, Piece(rows, range(1))
    if not len(rows):
        return at_start, in_middle, windows
    T, K = batch.length, s.bptt_length
    steps, carry = steps_of(policy, s.plan(T)._replace(cut_every=T), batch, returns, piece)
    n = units(batch, piece)
    if T % K:
        before_all = steps.between(slice(0, T % K))
        with torch.no_grad():
            carry = policy.scan(before_all.observations, before_all.resets, carry).carry
    for start in range(T % K, T, K):
        middle, stop = start + K // 2, start + K
        first = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in carry.items()}
        before = loss_of(policy, s, steps.between(slice(start, middle)), first, n, None)
        after = loss_of(policy, s, steps.between(slice(middle, stop)), before.carry, n, None)
        leaves = [value for value in first.values() if value.requires_grad]
        inside = [value for value in before.carry.values() if value.requires_grad]
        found = torch.autograd.grad(before.total + after.total, [*leaves, *inside], allow_unused=True)
        goes_on_B = ~steps.resets[start:middle].any(0)
        at_start += _norms(found[: len(leaves)], goes_on_B)
        in_middle += _norms(found[len(leaves) :], goes_on_B)
        windows += int(goes_on_B.sum())
        carry = after.carry
    return at_start, in_middle, windows


def _norms(gradients_B: tuple[torch.Tensor | None, ...], counted_B: torch.Tensor) -> float:
    """Sum over the counted ones of B of the norms of all parts of a carry's gradient together."""
    squares = [g.flatten(1).square().sum(1) for g in gradients_B if g is not None]
    return float(torch.stack(squares).sum(0).sqrt()[counted_B].sum()) if squares else 0.0
