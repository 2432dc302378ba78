"""Several independent switches.

Axis letters: B environments (any leading axes), A switches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mneme.controllers.actions.distribution import ActionDistribution


@dataclass(frozen=True)
class Bernoulli(ActionDistribution):
    """`size` switches, each 0 or 1 in int64; the parameters are the log-odds of 1."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"the number of switches is {self.size}; it must be at least 1")

    @property
    def parameter_size(self) -> int:
        return self.size

    @property
    def action_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def action_dtype(self) -> torch.dtype:
        return torch.int64

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        return (uniform < parameters.sigmoid()).long()

    def mode(self, parameters: Tensor) -> Tensor:
        return (parameters > 0).long()

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return logsigmoid(torch.where(action == 1, parameters, -parameters)).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        return -_expected(parameters, logsigmoid(parameters), logsigmoid(-parameters))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return _expected(p, logsigmoid(p) - logsigmoid(q), logsigmoid(-p) - logsigmoid(-q))

    def features(self, action: Tensor) -> Tensor:
        return action.float()


def _expected(logits: Tensor, if_one: Tensor, if_zero: Tensor) -> Tensor:
    """Sum over the switches of the mean of a quantity that depends on each: [B, A] three times -> [B]."""
    return (logits.sigmoid() * if_one + (-logits).sigmoid() * if_zero).sum(-1)
