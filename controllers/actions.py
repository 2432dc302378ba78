"""Action distributions: pure functions of a head's output, with the noise given from outside.

Axis letters: B lanes (any leading axes), A actions.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BELOW_ONE = 1 - 2.0**-24  # the last float32 below 1: times any total it rounds to less than that total


class ActionHead(Protocol):
    """One family of distributions. Leading axes of all arguments agree and are free."""

    @property
    def parameter_size(self) -> int:
        """How many numbers the network gives for one action."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Trailing shape of the uniform noise in [0, 1) that one sample consumes."""

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor: ...

    def mode(self, parameters: Tensor) -> Tensor: ...

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor: ...

    def entropy(self, parameters: Tensor) -> Tensor: ...

    def kl(self, p: Tensor, q: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Categorical:
    """One of `actions` choices; the parameters are unnormalised log-probabilities, -inf for "never"."""

    actions: int

    def __post_init__(self) -> None:
        if self.actions < 1:
            raise ValueError(f"the number of actions is {self.actions}; it must be at least 1")

    @property
    def parameter_size(self) -> int:
        return self.actions

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        """The action whose stretch of the cumulative distribution holds the noise: [B, A], [B] -> int64 [B].

        The same noise always gives the same action, and an action of probability zero is never given.
        """
        cdf_BA = parameters.softmax(-1).cumsum(-1)
        target_B1 = uniform.clamp(max=BELOW_ONE).unsqueeze(-1) * cdf_BA[..., -1:]
        return (cdf_BA <= target_B1).sum(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable action: [B, A] -> int64 [B]."""
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        """[B, A], int64 [B] -> [B], in nats."""
        return parameters.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """[B, A] -> [B], in nats."""
        log_p_BA = _finite(parameters.log_softmax(-1))
        return -(log_p_BA.exp() * log_p_BA).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q): [B, A], [B, A] -> [B], in nats; huge, not infinite, where q excludes what p allows."""
        log_p_BA, log_q_BA = _finite(p.log_softmax(-1)), _finite(q.log_softmax(-1))
        return (log_p_BA.exp() * (log_p_BA - log_q_BA)).sum(-1)


def _finite(log_p: Tensor) -> Tensor:
    """Keep 0 * log 0 at 0, in the value and in the gradient."""
    return log_p.clamp(min=torch.finfo(log_p.dtype).min / 2)
