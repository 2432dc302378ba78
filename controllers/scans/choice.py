"""Norm, heads and the choice of one of a few actions, compiled for CPUs.

Legend: B environments, H features, A actions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mneme.controllers.actions.distribution import BELOW_ONE
from mneme.controllers.scans.heads import Heads, read
from mneme.controllers.scans.machine_code import arrays, kernel, scratch
from mneme.controllers.scans.norm_row import normalised


class Choice:
    """Chooses with weights that must not change meanwhile.

    Args:
        heads: parameters, in the order of `Heads`.
        greedy: take the most probable action.
    """

    def __init__(self, heads: Sequence[Tensor], greedy: bool) -> None:
        self._heads, self._greedy = Heads(*arrays(*heads)), greedy
        A, H = heads[2].shape
        self._rooms = scratch(heads[2], (2, H), (2, A))
        self._take_lanes(0)

    def __call__(self, y_BH: Tensor, uniform_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions int64 [B], their log-probabilities in nats and values, [B] each, from noise in [0, 1); they are good
        until the next call."""
        if len(y_BH) != len(self._arrays[0]):
            self._take_lanes(len(y_BH))
        _choose(*arrays(y_BH, uniform_B1), self._heads, self._greedy, *self._arrays, *self._rooms)
        return self._chosen

    def _take_lanes(self, lanes: int) -> None:
        """Make room for what is chosen in so many."""
        numbers = scratch(torch.from_numpy(self._heads.policy_bias), (lanes,), (lanes,))
        self._arrays = np.empty(lanes, np.int64), *numbers
        action_B, log_prob_B, value_B = map(torch.from_numpy, self._arrays)
        self._chosen = action_B, log_prob_B, value_B


@kernel
def _choose(outputs, uniform, heads, greedy, actions, log_probs, values, wide, narrow):
    n, y, log_p, p = wide[0], wide[1], narrow[0], narrow[1]
    for b in range(len(outputs)):
        normalised(outputs[b], heads.gain, heads.shift, n, y)
        values[b] = read(y, heads, log_p, p)
        action, total, passed = 0, 0.0, 0.0
        if greedy:
            for a in range(1, len(p)):
                action = a if log_p[a] > log_p[action] else action
        else:
            for a in range(len(p)):
                total += p[a]
            mark = min(np.float64(uniform[b, 0]), BELOW_ONE) * total
            for a in range(len(p)):
                passed += p[a]
                action += passed <= mark
        actions[b], log_probs[b] = action, log_p[action]
